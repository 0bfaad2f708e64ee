"""Gradients that are no function to be differentiated: a second gradient is refused on every way to it.

PyTorch's ``once_differentiable`` refuses ``backward()`` alone. ``autograd.grad`` with inputs looks for ways
to them first, finds none through a gradient that has no history, and leaves out what would have come that
way: the gradient of a gradient would be wrong without a word wherever another layer stands before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["differentiable_once"]

Backward = Callable[..., tuple[Tensor | None, ...]]


def differentiable_once(backward: Backward) -> Backward:
    """A backward pass whose results raise an error where they are differentiated."""
    plain: Backward = once_differentiable(backward)

    @wraps(plain)
    def refusing(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return plain(ctx, *grads)
        made = plain(ctx, *(g.detach() for g in grads))
        sources = [t for t in (*grads, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        return tuple(None if one is None else _refusing(one.detach(), sources) for one in made)

    return refusing


def _refusing(value: Tensor, sources: Sequence[Tensor]) -> Tensor:
    made: Tensor = _Refusing.apply(value, *sources)  # type: ignore[no-untyped-call]
    return made


class _Refusing(torch.autograd.Function):
    """Hands on its first operand, as a value that depends on all the others."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, *sources: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed to refuse."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "the gradient of this layer is a statistic over batches and has no gradient of its own "
            "(once_differentiable); leave the layer out of gradient penalties, or put it in evaluation mode"
        )
