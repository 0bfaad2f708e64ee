"""Fold a map of each channel into the weight beside it: both read one value, and their results are added.

    c (W x + b) + a A(x) = c (W' x + b'),    W' = W + (a / c) diag(D) at the middle tap,
                                             b' = b + (a / c) A(0)

``A`` is a norm with stored statistics, a scale for each channel, or nothing, as in RepViT's
``bn(conv(x) + x)``. A scale and shift per channel is a convolution of one pixel (Ding et al. 2021,
arXiv 2101.03697, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap, Diagonal
from normfuse.analysis.flow import Carries, Scales
from normfuse.analysis.operator_table import flow
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.sizes import lies_alike, rank_of, repeats, same_shape, shape_of, tensor_of

__all__ = ["Beside", "beside", "own_input", "summands"]

Maps = tuple[ChannelMap, ...]
_CONVS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
#: Operators that multiply: any other that a norm's values go through ends its branch.
_SCALES = (
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.neg.default,
)  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """``sum`` adds a branch to ``rest``, in which ``reader`` reads with a weight what the branch begins with.

    Without the branch, ``sum`` is ``factor`` times ``rest``.

    Attributes:
        maps: what follows where the branch begins, innermost first, for each time that the reader counts.
    """

    sum: Node
    rest: Node
    reader: Node
    weight: Node
    groups: int
    maps: Maps
    factor: float


@dataclass(frozen=True)
class _Branch:
    """``maps`` of ``source``, as an operand of a sum."""

    operand: Node
    source: Node
    maps: Maps


def beside(norm: Node, source: Node, axis: int, weights: WeightValues) -> Beside | None:
    """The linear or convolution that can take a norm of ``source``, where there is one.

    The maps are those behind the norm.
    """
    if weights.is_written(source):
        return None
    operand, maps = norm, Maps()
    while (total := _only_reader(operand)) is not None and not weights.is_written(operand):
        if summands(total) is not None:
            return _in_tree(total, _Branch(operand, source, maps), axis, weights)
        scale = _scale_of(total, axis, weights)
        if scale is None:
            return None
        operand, maps = total, (*maps, scale[1])
    return None


def own_input(total: Node, axis: int, weights: WeightValues) -> Beside | None:
    """The linear or convolution to whose result a sum adds what it read, scaled or as it is."""
    for operand, _ in summands(total) or ():
        for branch in _branches(operand, axis, weights):
            found = _in_sum(total, branch, axis, weights)
            if found is not None:
                return found
    return None


def _branches(operand: Node, axis: int, weights: WeightValues) -> Iterator[_Branch]:
    """The operand itself, and what it is a multiple of."""
    branch = _Branch(operand, operand, ())
    while not weights.is_written(branch.source):
        yield branch
        scale = _scale_of(branch.source, axis, weights) if _only_reader(branch.source) is not None else None
        if scale is None:
            return
        branch = _Branch(operand, scale[0], (scale[1], *branch.maps))


def _scale_of(node: Node, axis: int, weights: WeightValues) -> tuple[Node, Diagonal] | None:
    """What an operator multiplies, and by which numbers for each channel or for all."""
    if not is_call(node, *_SCALES):
        return None
    found = flow(node, axis)
    scale: Node | float | None = None
    if isinstance(found, Scales):
        operand, scale = found.operand, found.scale
    elif isinstance(found, Carries) and len(found.operands) == 1:
        operand, scale = found.operands[0][0], found.factor
    if not scale or not _is_alike(operand, node):
        return None
    fixed = not isinstance(scale, Node) or _is_free(scale, weights)
    return (operand, Diagonal(scale)) if fixed else None


def _in_tree(total: Node, branch: _Branch, axis: int, weights: WeightValues) -> Beside | None:
    """In the sum itself, or in one that it is a term of."""
    found, share = _in_sum(total, branch, axis, weights), _shares(total, branch.operand)
    if found is not None or share is None or not lies_alike(total, share[0]):
        return found
    rest, count, factor = share
    below = total
    while (above := _only_reader(below)) is not None and not weights.is_written(below):
        level = _shares(above, below)
        if level is None:
            return None
        other, own, theirs = level
        count *= own
        for term, times in _terms(other, weights):
            held = _weight_of(term, branch.source, axis)
            if held is not None and _are_free(term, held[0], weights):
                maps = _times(branch.maps, count / (times * theirs))
                return Beside(total, rest, term, *held, maps, factor)
        below = above
    return None


def _in_sum(total: Node, branch: _Branch, axis: int, weights: WeightValues) -> Beside | None:
    share = _shares(total, branch.operand)
    if share is None or not lies_alike(total, share[0]):
        return None
    rest, count, factor = share
    for term, times in _terms(rest, weights):
        held = _weight_of(term, branch.source, axis)
        if held is not None and _are_free(term, held[0], weights):
            return Beside(total, rest, term, *held, _times(branch.maps, count / (times * factor)), factor)
    return None


def _times(maps: Maps, factor: float) -> Maps:
    return maps if factor == 1 else (*maps, Diagonal(factor))


def _shares(total: Node, operand: Node) -> tuple[Node, float, float] | None:
    """The other operand of a sum, and how often ``operand`` and the other one count."""
    terms = summands(total)
    if terms is None:
        return None
    (left, first), (right, second) = terms
    if left is right or operand not in (left, right):
        return None
    return (right, first, second) if operand is left else (left, second, first)


def summands(node: Node) -> tuple[tuple[Node, float], tuple[Node, float]] | None:
    """Two values of the sum's own shape and dtype, and how often each counts."""
    if not is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return None
    left, right, alpha = node.args[0], node.args[1], bind(node)["alpha"]
    if not isinstance(left, Node) or not isinstance(right, Node) or not _is_alike(left, node):
        return None
    if not isinstance(alpha, (int, float)) or not alpha or not _is_alike(right, node):
        return None
    return (left, 1.0), (right, float(alpha if is_call(node, aten.add.Tensor) else -alpha))


def _only_reader(value: Node) -> Node | None:
    """Who reads a value, where that is one node in one place."""
    readers = list(value.users)
    reads = [a for user in readers for a in (*user.args, *user.kwargs.values()) if a is value]
    return readers[0] if len(readers) == len(reads) == 1 else None


def _is_alike(a: object, b: Node) -> bool:
    left, right = tensor_of(a), tensor_of(b)
    return left is not None and right is not None and left.dtype == right.dtype and same_shape(a, b)


def _terms(value: Node, weights: WeightValues, times: float = 1.0) -> list[tuple[Node, float]]:
    """The values that are added, each of which nothing else reads, and how often each counts."""
    if _only_reader(value) is None or weights.is_written(value):
        return []
    terms = summands(value)
    if terms is None:
        return [(value, times)]
    return [term for operand, count in terms for term in _terms(operand, weights, times * count)]


def _are_free(term: Node, weight: Node, weights: WeightValues) -> bool:
    bias = bind(term)["bias"]
    own = _is_free(weight, weights) and not repeats(weight)  # else the folded weight would lie otherwise
    return own and (bias is None or _is_free(bias, weights))


def _is_free(weight: Node, weights: WeightValues) -> bool:
    fixed = all(isinstance(size, int) for size in shape_of(weight) or (None,))
    return weight in weights and weights.refusal(weight) is None and fixed


def _weight_of(node: Node, source: Node, axis: int) -> tuple[Node, int] | None:
    """The weight whose middle tap maps each channel of ``source`` onto itself: the sum is of one shape."""
    if is_call(node, aten.linear.default):
        bound = bind(node)
        fits = bound["input"] is source and axis == rank_of(source) - 1
        return (bound["weight"], 1) if fits else None
    if not is_call(node, *_CONVS):
        return None
    bound = bind(node)
    fits = bound["input"] is source and axis == rank_of(source) - (rank_of(bound["weight"]) - 1)
    return (bound["weight"], bound["groups"]) if fits and _is_centred(bound) else None


def _is_centred(bound: dict[str, Any]) -> bool:
    """Whether the middle tap of each output reads the input at the same place."""
    kernel = (shape_of(bound["weight"]) or ())[2:]
    strides, dilation = (_each(bound[name], len(kernel)) for name in ("stride", "dilation"))
    odd = all(isinstance(k, int) and k % 2 == 1 and s == 1 for k, s in zip(kernel, strides, strict=True))
    if bound.get("transposed") or not odd:
        return False
    if isinstance(bound["padding"], str):
        return bound["padding"] == "same" or all(k == 1 for k in kernel)
    padding = _each(bound["padding"], len(kernel))
    return all(p == d * (k // 2) for k, p, d in zip(kernel, padding, dilation, strict=True))


def _each(value: Any, count: int) -> list[Any]:
    """One number for every axis of the kernel."""
    values = list(value)
    return values * count if len(values) == 1 else values
