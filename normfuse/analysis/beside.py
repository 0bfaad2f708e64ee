"""Fold a map of each channel into the weight beside it: both read one value, and their results are added.

    c (W x + b) + a A(x) = c (W' x + b'),    W' = W + (a / c) diag(D) at the middle tap,
                                             b' = b + (a / c) A(0)

``A`` is a norm with stored statistics, a scale for each channel, or nothing, as in RepViT's
``bn(conv(x) + x)``. A scale and shift per channel is a convolution of one pixel (Ding et al. 2021,
arXiv 2101.03697, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.fx import Node

from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.flow import Carries, Scales
from normfuse.analysis.operator_table import flow
from normfuse.analysis.own_tap import OwnTap, reader_weight
from normfuse.analysis.plan import Leaf, Maps, Plan, Rebuilt
from normfuse.analysis.sums import is_alike, only_reader, shares, summands, terms_of
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.sizes import lies_alike, repeats, shape_of

__all__ = ["Beside", "beside", "own_input", "with_own_tap"]

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
    while (total := only_reader(operand)) is not None and not weights.is_written(operand):
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
        scale = _scale_of(branch.source, axis, weights) if only_reader(branch.source) is not None else None
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
    if not scale or not is_alike(operand, node):
        return None
    fixed = not isinstance(scale, Node) or _is_free(scale, weights)
    return (operand, Diagonal(scale)) if fixed else None


def _in_tree(total: Node, branch: _Branch, axis: int, weights: WeightValues) -> Beside | None:
    """In the sum itself, or in one that it is a term of."""
    found, share = _in_sum(total, branch, axis, weights), shares(total, branch.operand)
    if found is not None or share is None or not lies_alike(total, share[0]):
        return found
    rest, count, factor = share
    below = total
    while (above := only_reader(below)) is not None and not weights.is_written(below):
        level = shares(above, below)
        if level is None:
            return None
        other, own, theirs = level
        count *= own
        for term, times in terms_of(other, weights):
            held = reader_weight(term, branch.source, axis)
            if held is not None and _are_free(term, held[0], weights):
                maps = _times(branch.maps, count / (times * theirs))
                return Beside(total, rest, term, *held, maps, factor)
        below = above
    return None


def _in_sum(total: Node, branch: _Branch, axis: int, weights: WeightValues) -> Beside | None:
    share = shares(total, branch.operand)
    if share is None or not lies_alike(total, share[0]):
        return None
    rest, count, factor = share
    for term, times in terms_of(rest, weights):
        held = reader_weight(term, branch.source, axis)
        if held is not None and _are_free(term, held[0], weights):
            return Beside(total, rest, term, *held, _times(branch.maps, count / (times * factor)), factor)
    return None


def _times(maps: Maps, factor: float) -> Maps:
    return maps if factor == 1 else (*maps, Diagonal(factor))


def _are_free(term: Node, weight: Node, weights: WeightValues) -> bool:
    bias = bind(term)["bias"]
    own = _is_free(weight, weights) and not repeats(weight)  # else the folded weight would lie otherwise
    return own and (bias is None or _is_free(bias, weights))


def _is_free(weight: Node, weights: WeightValues) -> bool:
    fixed = all(isinstance(size, int) for size in shape_of(weight) or (None,))
    return weight in weights and weights.refusal(weight) is None and fixed


def with_own_tap(plan: Plan, joined: Beside, maps: Maps) -> Plan:
    """A plan in which the reader's weight, which takes ``maps``, has what stands beside it as a tap first."""
    if not isinstance(plan, Rebuilt):
        return plan
    if plan.node is not joined.reader:
        operands = tuple((node, with_own_tap(deeper, joined, maps)) for node, deeper in plan.operands)
        return replace(plan, operands=operands)
    planned = dict(plan.operands)
    before = planned[joined.weight]
    taken = before.maps if isinstance(before, Leaf) and before.node is joined.weight else maps
    own = OwnTap(joined.maps, joined.groups)
    planned[joined.weight] = Leaf(joined.weight, 0, (own, *taken))
    return replace(plan, operands=tuple(planned.items()))
