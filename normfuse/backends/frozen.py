"""Inductor with the weights as constants: what it folds then cannot follow a weight that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from normfuse.freezing.tuning import TUNED, quiet

__all__ = ["frozen"]


def frozen(model: Callable[..., Any]) -> Callable[..., Any]:
    """``model`` compiled with freezing and tuned products.

    Freezing has to be on while Dynamo traces as well as later.
    """
    import torch._inductor.config as inductor

    compiled: Callable[..., Any] = torch.compile(model)
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return compiled(*args, **kwargs)
        with inductor.patch(TUNED), quiet(TUNED):
            return compiled(*args, **kwargs)

    return call
