"""Absorb what follows a lifted core, one operator at a time, to a fixpoint.

    core -> [cast] -> [* weight] -> [+ bias] -> [cast]

A piece takes the norm so far and its only reader, and returns the larger norm or None. A new
piece is a new function in ``PIECES``; it never needs to know the spelling of the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.patterns.candidate import Candidate

__all__ = ["PIECES", "absorb", "weight_offset"]

Piece = Callable[[Candidate, Node], Candidate | None]


def absorb(candidate: Candidate) -> Candidate:
    """Grow a norm over its only reader as long as some piece fits."""
    while not candidate.closed and len(candidate.root.users) == 1:
        reader = next(iter(candidate.root.users))
        larger = next((g for piece in PIECES if (g := piece(candidate, reader)) is not None), None)
        if larger is None:
            return candidate
        candidate = larger
    return candidate


def cast(norm: Candidate, reader: Node) -> Candidate | None:
    """A change of dtype: before the scale it says where the value is rounded, after it, it ends the norm."""
    value, before = tensor_of(reader), tensor_of(norm.root)
    if not is_call(reader, *CASTS) or reader.args[0] is not norm.root or value is None or before is None:
        return None
    if not value.is_floating_point() or value.device != before.device or len(reader.all_input_nodes) > 1:
        return None
    if norm.spec.has_scale or norm.spec.has_shift:
        return replace(norm.grown(reader), closed=True)
    if norm.spec.scale_dtype != norm.spec.compute_dtype:
        return None
    return norm.grown(reader, scale_dtype=value.dtype)


def _operand(norm: Candidate, reader: Node) -> Node | None:
    """The other operand of a product or sum, when it varies along normalized dimensions only."""
    left, right = reader.args[0], reader.args[1]
    other = right if left is norm.root else left
    shape, full, dims = shape_of(other), shape_of(norm.root), norm.spec.dims
    if (
        other is norm.root
        or not isinstance(other, Node)
        or not shape
        or full is None
        or len(shape) > len(full)
    ):
        return None
    per_channel = all(
        same(shape[d], full[d]) if d in dims else same(shape[d], 1) for d in range(-len(shape), 0)
    )
    return other if per_channel and len(shape) >= -min(dims) and _floating(other) else None


def _floating(node: Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_floating_point()


def scale(norm: Candidate, reader: Node) -> Candidate | None:
    """``* weight``"""
    if not is_call(reader, aten.mul.Tensor) or norm.spec.has_scale or norm.spec.has_shift:
        return None
    weight = _operand(norm, reader)
    if weight is None:
        return None
    operands = replace(norm.operands, scale=weight)
    return norm.grown(reader, operands, has_scale=True, weight_offset=weight_offset(weight))


def shift(norm: Candidate, reader: Node) -> Candidate | None:
    """``+ bias``"""
    if not is_call(reader, aten.add.Tensor) or norm.spec.has_shift or bind(reader)["alpha"] != 1:
        return None
    bias = _operand(norm, reader)
    return None if bias is None else norm.grown(reader, replace(norm.operands, shift=bias), has_shift=True)


def weight_offset(weight: Node | None) -> float:
    """The constant that a model adds to its weight before use: 1.0 where it stores ``weight - 1``.

    The offset is part of the operand; the description only names the convention.
    """
    if weight is None or not is_call(weight, aten.add.Tensor, aten.add.Scalar):
        return 0.0
    numbers = [a for a in weight.args[:2] if isinstance(a, (int, float))]
    return float(numbers[0]) if numbers and torch.is_tensor(weight.meta.get("val")) else 0.0


PIECES: tuple[Piece, ...] = (cast, scale, shift)
