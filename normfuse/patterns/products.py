"""Products with one number per channel, however they are spelled.

x * s        x / s        einsum("btc,c->btc", x, s)        x @ diag(s)        linear(x, diag(s), bias)
addcmul(bias, x, s)       addcdiv(bias, x, s)               lerp(mean, x, s) = (x - mean) * s + mean
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.einsum import subscripts
from normfuse.ir.moves import TURNS
from normfuse.ir.sizes import rank_of, same, shape_of, tensor_of

__all__ = ["EXACT", "Product", "channel_axis", "keeps", "product", "unrepeated"]

#: In half precision an operator that does two things rounds once, and two operators twice.
EXACT = (torch.float32, torch.float64)

_REPEATS = (aten.expand.default, aten.expand_as.default)
_RIGHT: dict[object, tuple[str, str, str | None]] = {
    aten.matmul.default: ("self", "other", None),
    aten.mm.default: ("self", "mat2", None),
    aten.linear.default: ("input", "weight", "bias"),
    aten.addmm.default: ("mat1", "mat2", "self"),
}
_ROWS_ONLY = (aten.linear.default, aten.addmm.default)


@dataclass(frozen=True)
class Product:
    """``(value - mean) * factor + shift``, or with ``divides`` a quotient; along ``axis`` factors differ."""

    value: Node
    factor: Node
    axis: int
    divides: bool = False
    shift: Node | None = None
    mean: Node | None = None


def product(node: Node, weights: Container[Node]) -> Product | None:
    """What a node multiplies by entries of the model; None where it does something else, or more."""
    found = _product(node, weights)
    if found is None:
        return None
    fits = found.shift is None or channel_axis(found.shift, node) == found.axis
    return found if fits and keeps(found.value, node) else None


def _product(node: Node, weights: Container[Node]) -> Product | None:
    if is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return _elementwise(node, node.args[:2], weights, is_call(node, aten.div.Tensor))
    if is_call(node, aten.einsum.default):
        return _by_letters(node, weights)
    if node.target in _RIGHT:
        return _by_diagonal(node, weights)
    exact = tensor_of(node)
    if exact is None or exact.dtype not in EXACT:
        return None
    if is_call(node, aten.addcmul.default, aten.addcdiv.default):
        bound, divides = bind(node), is_call(node, aten.addcdiv.default)
        shift, pair = bound["self"], (bound["tensor1"], bound["tensor2"])
        found = _elementwise(node, pair, weights, divides) if bound["value"] == 1 else None
        return None if found is None or shift not in weights else changed(found, shift=shift)
    return _between(node, weights) if is_call(node, aten.lerp.Tensor) else None


def _elementwise(node: Node, pair: Sequence[Any], weights: Container[Node], divides: bool) -> Product | None:
    left, right = (unrepeated(value, weights) for value in pair)
    if isinstance(left, Node) and left in weights and not divides:
        left, right = right, left
    axis = channel_axis(right, node)
    if not (isinstance(left, Node) and isinstance(right, Node)) or left in weights or right not in weights:
        return None
    return None if axis is None else Product(left, right, axis, divides)


def _between(node: Node, weights: Container[Node]) -> Product | None:
    """From stored means to the values: how far is a factor of each channel."""
    bound = bind(node)
    mean, factor = (unrepeated(bound[name], weights) for name in ("self", "weight"))
    value, axis = bound["end"], channel_axis(factor, node)
    if value in weights or mean not in weights or factor not in weights or channel_axis(mean, node) != axis:
        return None
    return None if axis is None else Product(value, factor, axis, shift=mean, mean=mean)  # type: ignore[arg-type]


def _by_letters(node: Node, weights: Container[Node]) -> Product | None:
    """An einsum of two operands that sums nothing and leaves each axis in its place."""
    bound = bind(node)
    operands = bound["tensors"]
    if len(operands) != 2:
        return None
    terms, output = subscripts(bound["equation"], [rank_of(o) for o in operands])
    for (value, letters), (factor, letter) in _both_ways(tuple(zip(operands, terms, strict=True))):
        if value not in weights and factor in weights and letters == output and len(letter) == 1:
            axis = output.find(letter) - len(output)
            fits = letter in output and len(set(output)) == len(output)
            alike = fits and same((shape_of(factor) or (0,))[0], (shape_of(node) or (0,))[axis])
            return Product(value, factor, axis) if alike else None
    return None


def _both_ways(pair: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    return pair, pair[::-1]


def _by_diagonal(node: Node, weights: Container[Node]) -> Product | None:
    bound = bind(node)
    left, right, shift = (bound.get(str(name)) for name in _RIGHT[node.target])
    if bound.get("alpha", 1) != 1 or bound.get("beta", 1) != 1 or not (shift is None or shift in weights):
        return None
    sides = [(left, right, -1), (right, left, -2)]
    for value, matrix, axis in sides[:1] if node.target in _ROWS_ONLY else sides:
        entries = _diagonal(matrix) if matrix in weights and value not in weights else None
        if isinstance(value, Node) and entries is not None:
            return Product(value, entries, axis, shift=shift)
    return None


def _diagonal(matrix: Any) -> Node | None:
    """The entries of ``diag(s)`` or of ``eye(n) * s``, which have nothing beside them, in any transpose."""
    while is_call(matrix, aten.t.default, *TURNS):
        matrix = matrix.args[0]
    if rank_of(matrix) != 2:
        return None
    if is_call(matrix, aten.mul.Tensor):
        for eye, entries in (matrix.args[:2], matrix.args[1::-1]):
            if _is_square(eye) and channel_axis(entries, matrix) is not None:
                return entries  # type: ignore[no-any-return]
        return None
    if not is_call(matrix, aten.diag.default, aten.diag_embed.default):
        return None
    bound = bind(matrix)
    entries = bound["self"]
    is_main = bound.get("diagonal", 0) == 0 and bound.get("offset", 0) == 0
    return entries if is_main and rank_of(entries) == 1 else None


def _is_square(eye: object) -> bool:
    """Whether a value is a square identity matrix: its product with a vector has that on the diagonal."""
    sizes = shape_of(eye) or ()
    return is_call(eye, aten.eye.default, aten.eye.m) and len(sizes) == 2 and same(sizes[0], sizes[1])


def keeps(value: Node, node: Node) -> bool:
    """Whether ``node`` has the axes of ``value``, and numbers that it can scale."""
    before, after = tensor_of(value), tensor_of(node)
    keeps = before is not None and after is not None and before.dim() == after.dim()
    return keeps and before.is_floating_point()  # type: ignore[union-attr]


def unrepeated(value: object, weights: Container[Node]) -> object:
    """A weight before it was repeated to meet the values; anything else as it is."""
    inner = value
    while is_call(inner, *_REPEATS):
        inner = inner.args[0]  # type: ignore[attr-defined]
    return inner if inner in weights else value


def channel_axis(vector: object, node: Node) -> int | None:
    """The axis, counted from the end, along which a broadcast operand varies; None unless it is one."""
    shape, full = shape_of(vector), shape_of(node)
    if shape is None or full is None or len(shape) > len(full):
        return None
    varying = [d for d in range(-len(shape), 0) if not same(shape[d], 1)]
    return varying[0] if len(varying) == 1 and same(shape[varying[0]], full[varying[0]]) else None
