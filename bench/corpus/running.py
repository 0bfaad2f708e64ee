"""One call of a model: always the same, on copies of the inputs, and its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

_PATH = re.compile(r"(?<![\w.):/])/(?:[\w.+-]+/)+[\w.+-]*")

__all__ = ["is_settled", "same_bits", "sentence", "tensors_of"]


def tensors_of(model: Callable[..., Any], inputs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that one call from seed 0 returns, gradients off."""
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(**tree_map(_copy, inputs))
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def is_settled(model: torch.nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether two calls return the same bits."""
    return same_bits(tensors_of(model, inputs), tensors_of(model, inputs))


def same_bits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Equal tensors of equal types; NaN equals NaN."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and _equal(x, y) for x, y in zip(a, b, strict=True)
    )


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    if not (x.is_floating_point() or x.is_complex()):
        return torch.equal(x, y)
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def sentence(error: BaseException) -> str:
    """The kind of an error and the first line of what it says; of the cause, where Dynamo wraps one.

    Where something lies on this machine is left out.
    """
    error = getattr(error, "inner_exception", None) or error
    lines = str(error).strip().splitlines()
    said = _PATH.sub("...", lines[0]) if lines else ""
    return f"{type(error).__name__}: {said[:150]}"
