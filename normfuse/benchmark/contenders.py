"""The same model several times: eager, compiled, and without its norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from normfuse.backends.without_norms import WithoutNorms
from normfuse.benchmark.settings import BASELINE, FROZEN, NO_NORMS, ONNX
from normfuse.benchmark.subject import Subject

__all__ = ["contender"]

Program = Callable[..., Any]


def contender(name: str, subject: Subject) -> Program:
    """The model of ``subject`` as ``name`` runs it; compiled at its first call."""
    if name == "eager":
        return subject.model
    if name == ONNX:
        from normfuse.benchmark.onnx import onnx_session

        return onnx_session(subject)
    if name == FROZEN:
        return _frozen(subject)
    backends: dict[str, Any] = {BASELINE: "inductor", "normfuse": "normfuse", NO_NORMS: WithoutNorms()}
    compiled: Program = torch.compile(subject.model, backend=backends[name])
    return compiled


def _frozen(subject: Subject) -> Program:
    """Inductor with the weights as constants; freezing has to be on while Dynamo traces, too."""
    import torch._inductor.config as inductor

    compiled: Program = torch.compile(subject.model)
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return compiled(*args, **kwargs)
        with inductor.patch(freezing=True):
            return compiled(*args, **kwargs)

    return call
