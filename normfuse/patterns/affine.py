"""Absorb what follows a lifted core, one operator at a time, to a fixpoint.

    core -> [merge groups] -> [cast] -> [* weight] -> [+ bias] -> [cast] -> [* number]

A piece takes the norm so far and its only reader, and returns the larger norm or None. A new
piece is a new function registered with :func:`piece`; it never needs to know the spelling of the core.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, bind, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.kinds import teach_by
from normfuse.ir.sizes import rank_of, same, shape_of, static_size, tensor_of
from normfuse.patterns.algebra import is_moderate, number
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.constants import Constants
from normfuse.patterns.operands import is_stored, spans, varying_dims

__all__ = ["absorb", "piece", "weight_offset"]

Piece = Callable[[Candidate, Node], Candidate | None]
_PIECES: list[Piece] = []


def piece(function: Piece) -> Piece:
    """Register a function that absorbs the only reader of a norm."""
    _PIECES.append(function)
    teach_by(function.__module__)
    return function


def absorb(candidate: Candidate) -> Candidate:
    """Grow a norm over its only reader as long as some piece fits."""
    while not candidate.closed and len(found := readers(candidate.root)) == 1:
        reader = found[0]
        larger = next((g for fits in _PIECES if (g := fits(candidate, reader)) is not None), None)
        if larger is None:
            return candidate
        candidate = larger
    return candidate


@piece
def cast(norm: Candidate, reader: Node) -> Candidate | None:
    """A change of dtype: before the scale it says where the value is rounded, after it, it ends the norm."""
    value, before = tensor_of(reader), tensor_of(norm.root)
    if not is_call(reader, *CASTS) or reader.args[0] is not norm.root or value is None or before is None:
        return None
    if not value.is_floating_point() or value.device != before.device or len(reader.all_input_nodes) > 1:
        return None
    if norm.spec.has_scale or norm.spec.has_shift:
        return changed(norm.grown(reader), closed=True)
    if norm.spec.scale_dtype != norm.spec.compute_dtype:
        return None
    return norm.grown(reader, scale_dtype=value.dtype)


def _operand(norm: Candidate, reader: Node) -> tuple[Node, tuple[int, ...]] | None:
    """The other operand of a product or sum, and ``affine_dims``.

    It varies along the normalized dimensions, or it belongs to the model and is one number (Nguyen, Salazar
    2019, arXiv 1910.05895) or varies along others (one weight for each head, one for each channel
    of a group), but not along the batch, as a mask does.
    """
    left, right = reader.args[0], reader.args[1]
    other = right if left is norm.root else left
    if other is norm.root or not isinstance(other, Node) or not _floating(other):
        return None
    if spans(other, norm.root, norm.spec.dims):
        return other, ()
    dims = varying_dims(other, norm.root) if is_stored(other) else None
    return None if dims is None or -rank_of(norm.root) in dims else (other, dims)


def _floating(node: Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.is_floating_point()


@piece
def scale(norm: Candidate, reader: Node) -> Candidate | None:
    """``* weight``"""
    if not is_call(reader, aten.mul.Tensor) or norm.spec.has_scale or norm.spec.has_shift:
        return None
    found = _operand(norm, reader)
    if found is None:
        return None
    operands = changed(norm.operands, scale=found[0])
    return norm.grown(
        reader, operands, has_scale=True, affine_dims=found[1], weight_offset=weight_offset(found[0])
    )


@piece
def shift(norm: Candidate, reader: Node) -> Candidate | None:
    """``+ bias``"""
    if not is_call(reader, aten.add.Tensor) or norm.spec.has_shift or bind(reader)["alpha"] != 1:
        return None
    found = _operand(norm, reader) if norm.spec.post_factor == 1 else None
    if found is None or (norm.spec.has_scale and found[1] != norm.spec.affine_dims):
        return None
    return norm.grown(reader, changed(norm.operands, shift=found[0]), has_shift=True, affine_dims=found[1])


@piece
def scale_and_shift(norm: Candidate, reader: Node) -> Candidate | None:
    """``addcmul(bias, core, weight)``, where no product is rounded that one operator would not round."""
    exact = norm.spec.scale_dtype in (torch.float32, torch.float64)
    if not is_call(reader, aten.addcmul.default) or not exact or norm.spec.has_scale or norm.spec.has_shift:
        return None
    bound = bind(reader)
    left, right, bias = bound["tensor1"], bound["tensor2"], bound["self"]
    weight = right if left is norm.root else left
    nodes = (weight, bias)
    if bound["value"] != 1 or norm.root in nodes or norm.spec.post_factor != 1:
        return None
    if not all(isinstance(n, Node) and _floating(n) and spans(n, norm.root, norm.spec.dims) for n in nodes):
        return None
    operands = changed(norm.operands, scale=weight, shift=bias)
    return norm.grown(reader, operands, has_scale=True, has_shift=True, weight_offset=weight_offset(weight))


@piece
def factor(norm: Candidate, reader: Node) -> Candidate | None:
    """``* number`` after everything else; right after the core it may be part of the statistics."""
    if not is_call(reader, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        return None
    left, right = reader.args[0], reader.args[1]
    known = number(right if left is norm.root else left)
    divides = is_call(reader, aten.div.Tensor, aten.div.Scalar)
    if known is None or (divides and left is not norm.root):
        return None
    spec = norm.spec
    post = spec.post_factor * (1 / known if divides else known)
    if not is_moderate(post):
        return None
    is_core = not (spec.has_scale or spec.has_shift) and spec.out_dtype == spec.compute_dtype
    if not is_core or spec.eps is None or spec.kind not in ("rms_norm", "l2_norm", "crms_norm", "layer_norm"):
        return changed(norm.grown(reader, post_factor=post), closed=True)
    sizes = [static_size(norm.root, d) for d in spec.dims]
    elements = None if None in sizes else math.prod(s for s in sizes if s) + (spec.basis == "drop_last")
    made = Constants(spec.divisor, spec.eps, spec.eps_mode, post).canonical(elements)
    kind = spec.kind if spec.centred or spec.basis else made.kind
    return norm.grown(
        reader, kind=kind, divisor=made.whole_divisor, eps=made.eps, post_factor=made.post_factor,
        eps_mode=made.eps_mode,
    )  # fmt: skip


@piece
def merged_groups(norm: Candidate, reader: Node) -> Candidate | None:
    """The channels of a norm over groups of channels, put together again as they were split."""
    split, spec = norm.operands.source, norm.spec
    if not is_call(reader, *_VIEWS) or not is_call(split, *_VIEWS) or not isinstance(split.args[0], Node):
        return None
    if spec.dims != (-1,) or spec.groups != 1 or spec.has_scale or spec.has_shift:
        return None
    if len(split.all_input_nodes) > 1 or len(reader.all_input_nodes) > 1:
        return None
    groups = _splits_channels(split.args[0], split, reader)
    if groups is None:
        return None
    source = _before_widening(split.args[0])
    value = tensor_of(source)
    assert value is not None
    return norm.grown(reader, changed(norm.operands, source=source), groups=groups, source_dtype=value.dtype)


_VIEWS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int)


def _splits_channels(whole: Node, parts: Node, merged: Node) -> int | None:
    """How many groups the last dimension was split into, where ``merged`` has the shape of ``whole``."""
    full, split, result = shape_of(whole), shape_of(parts), shape_of(merged)
    if full is None or split is None or result is None:
        return None
    if len(split) != len(full) + 1 or len(result) != len(full) or not isinstance(split[-2], int):
        return None
    agrees = [same(a, b) for a, b in zip((*full, *full[:-1]), (*result, *split[:-2]), strict=True)]
    return split[-2] if all(agrees) else None


def _before_widening(node: Node) -> Node:
    """The value that casts without loss made ``node`` of."""
    while is_call(node, *CASTS) and len(node.all_input_nodes) == 1:
        before, after = tensor_of(node.args[0]), tensor_of(node)
        if before is None or after is None or after.dtype not in WIDER.get(before.dtype, ()):
            break
        node = node.all_input_nodes[0]
    return node


def weight_offset(weight: Node | None) -> float:
    """The constant that a model adds to its weight before use: 1.0 where it stores ``weight - 1``.

    The offset is part of the operand; the description only names the convention.
    """
    for _ in range(4):
        if weight is None or not is_call(weight, *CASTS) or not isinstance(weight.args[0], Node):
            break
        weight = weight.args[0]
    if weight is None or not is_call(weight, aten.add.Tensor, aten.add.Scalar):
        return 0.0
    numbers = [a for a in weight.args[:2] if isinstance(a, (int, float))]
    return float(numbers[0]) if numbers and torch.is_tensor(weight.meta.get("val")) else 0.0
