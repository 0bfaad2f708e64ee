"""Comparing sizes without adding a guard: a symbolic size is equal only when it provably is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.calls import CASTS, is_call
from normfuse.ir.dtypes import digits
from normfuse.torch_compat import plain_size, statically_known_true

__all__ = [
    "digits_added",
    "has_entries",
    "is_bounded_by",
    "is_expanded",
    "is_row_major",
    "lies_alike",
    "no_larger",
    "rank_of",
    "repeats",
    "same",
    "same_product",
    "same_shape",
    "shape_of",
    "static_size",
    "tensor_of",
    "tensors_of",
    "widened_by",
]


def tensor_of(node: object) -> torch.Tensor | None:
    """The fake tensor a node stands for, or None when it is not one tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def tensors_of(node: object) -> list[torch.Tensor]:
    """The fake tensors a node stands for: itself, or the parts of a list."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def rank_of(node: object) -> int:
    """The number of axes of a value, or of the parts of a list."""
    return next((len(part.shape) for part in tensors_of(node)), 0)


def shape_of(node: object) -> tuple[Any, ...] | None:
    """Sizes of the tensor a node stands for: plain numbers where they are known by now, else symbolic.

    A size becomes known after a tensor was made when an operator joins it with a weight of fixed size.
    """
    value = tensor_of(node)
    return None if value is None else tuple(map(plain_size, value.shape))


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are provably equal."""
    return bool(a is b) or bool(statically_known_true(a == b))


def same_product(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two runs of sizes hold provably the same number of elements."""
    left, right = 1, 1
    for size in a:
        left = left * size
    for size in b:
        right = right * size
    return same(left, right)


def same_shape(a: object, b: object) -> bool:
    """Whether two values have provably the same sizes: neither is repeated to meet the other."""
    left, right = shape_of(a), shape_of(b)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(same(one, other) for one, other in zip(left, right, strict=True))


def no_larger(node: Node, others: Sequence[Node]) -> bool:
    """Whether a value provably holds at most as many elements as some others together."""
    value, rest = tensor_of(node), [t for other in others if (t := tensor_of(other)) is not None]
    if value is None:
        return False
    if any(same(value.numel(), other.numel()) for other in rest):
        return True
    return bool(statically_known_true(value.numel() <= sum(other.numel() for other in rest)))


def is_row_major(value: torch.Tensor) -> bool:
    """Whether a value is provably laid out without gaps, the last axis first."""
    expected: Any = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if not same(size, 1) and not same(stride, expected):
            return False
        expected = expected * size
    return True


def lies_alike(a: Node, b: Node) -> bool:
    """Whether two values of one shape have provably the same strides."""
    left, right = tensor_of(a), tensor_of(b)
    if left is None or right is None:
        return False
    strides = zip(left.shape, left.stride(), right.stride(), strict=True)
    return all(same(size, 1) or same(one, other) for size, one, other in strides)


def repeats(node: Node) -> bool:
    """Whether a value may show one entry in several places, which memory of its own cannot."""
    value = tensor_of(node)
    if value is None:
        return False
    needed = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size > 1 and stride < needed:
            return True
        needed = max(needed, stride * size)
    return False


def is_expanded(node: Node) -> bool:
    """Whether a value shows one entry in several places along an axis; asks nothing of open sizes."""
    value = tensor_of(node)
    if value is None:
        return False
    return any(
        same(stride, 0) and not same(size, 1)
        for size, stride in zip(value.shape, value.stride(), strict=True)
    )


def widened_by(cast: Node) -> int:
    """How many digits a cast adds to each entry: negative where it rounds them, 0 for all else."""
    return digits_added(cast, cast.args[0]) if is_call(cast, *CASTS) else 0


def digits_added(node: Node, operand: object) -> int:
    """How many more digits the entries of a result have than those of an operand, both floating point."""
    floats = _floats(node, operand)
    return 0 if floats is None else digits(floats[0]) - digits(floats[1])


def is_bounded_by(cast: Node) -> bool:
    """Whether a cast makes infinities of entries that are none."""
    floats = _floats(cast, cast.args[0]) if is_call(cast, *CASTS) else None
    return floats is not None and torch.finfo(floats[0]).max < torch.finfo(floats[1]).max


def _floats(node: Node, operand: object) -> tuple[torch.dtype, torch.dtype] | None:
    """The dtypes of a result and of an operand, where both are floating point."""
    after, before = tensor_of(node), tensor_of(operand)
    if before is None or after is None or not (before.is_floating_point() and after.is_floating_point()):
        return None
    return after.dtype, before.dtype


def static_size(node: object, axis: int) -> int | None:
    """The size along ``axis`` when it is a plain number."""
    shape = shape_of(node)
    size = None if shape is None else shape[axis]
    return size if isinstance(size, int) else None


def has_entries(node: object, axis: int) -> bool:
    """Whether a value provably has entries along an axis."""
    shape = shape_of(node)
    return shape is not None and bool(statically_known_true(shape[axis] > 0))
