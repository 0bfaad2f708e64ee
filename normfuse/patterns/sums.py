"""Transfer functions of sums and differences, whose terms are told apart by their sign.

x - mean(x)     mean(x**2) - mean(x)**2     statistic + eps     x * r + (bias - mean(x) * r)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.patterns import offsets
from normfuse.patterns.algebra import HALF, divided_by_count, power, stays
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.fitting import aligned, keeps_shape, normed
from normfuse.patterns.moments import product_of_means, squared_mean, variance_by_moments, with_dropped
from normfuse.patterns.operands import is_stored, spans
from normfuse.patterns.roots import plus_eps
from normfuse.patterns.signs import signed

__all__: list[str] = []

_Term = tuple[object, int]


@transfer(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor)
def total(node: Node, facts: Facts) -> Fact | None:
    bound = bind(node)
    if bound["alpha"] not in (1, -1):
        return None
    outer = bound["alpha"] * (-1 if is_call(node, aten.sub.Tensor) else 1)
    left, (right, inner) = signed(bound["self"]), signed(bound["other"])
    for one, other in _orders(left, (right, outer * inner)):
        made = _joined(node, one, other, facts)
        if made is not None:
            return made
    return None


def _orders(left: _Term, right: _Term) -> Iterator[tuple[_Term, _Term]]:
    yield left, right
    yield right, left


def _joined(node: Node, one: _Term, other: _Term, facts: Facts) -> Fact | None:
    """The first term, a positive one, plus the second."""
    (value, sign), (added, its_sign) = one, other
    if sign != 1:
        return None
    if its_sign == 1:
        made = plus_eps(node, value, added, facts)
        made = made or with_dropped(node, value, squared_mean(added, facts), facts)
    else:
        made = _centred(node, value, added, facts)
        made = made or variance_by_moments(node, value, squared_mean(added, facts), facts)
    return made or _with_part(node, value, offsets.part(added, its_sign, facts), facts)


def _with_part(node: Node, value: object, added: Fact | None, facts: Facts) -> Fact | None:
    """A part of a norm whose mean is removed last is added to the other part, or to the bias."""
    return offsets.joined(node, offsets.part(value, 1, facts), added) or offsets.shifted(node, added, value)


def _centred(node: Node, value: object, subtracted: object, facts: Facts) -> Fact | None:
    left, right = facts.at(value, Stage.SOURCE), facts.at(subtracted, Stage.MEAN)
    if left is None or right is None or left.centred:
        return None
    if left.source is not right.source or left.compute_dtype != right.compute_dtype:
        return None
    if not divided_by_count(right) or not aligned(right):
        return None
    made = changed(left, centred=True, dims=right.dims, flaw=left.flaw or right.flaw)
    return stays(node, made) if keeps_shape(node, left) else None


@transfer(aten.addcmul.default)
def product_added(node: Node, facts: Facts) -> Fact | None:
    """``self + value * tensor1 * tensor2``, where the product alone is no value of the graph."""
    bound = bind(node)
    if bound["value"] not in (1, -1):
        return None
    (left, one), (right, other) = signed(bound["tensor1"]), signed(bound["tensor2"])
    by_moments = variance_by_moments if bound["value"] * one * other == -1 else with_dropped
    made = by_moments(node, bound["self"], product_of_means(left, right, facts), facts)
    if made is not None:
        return made
    added = offsets.product(node, bound["tensor1"], bound["tensor2"], facts)
    if added is not None:
        return _with_part(node, bound["self"], offsets.with_sign(added, bound["value"]), facts)
    if bound["value"] * one * other != 1:
        return None
    orders = ((left, facts.at(right, Stage.STATISTIC)), (right, facts.at(left, Stage.STATISTIC)))
    norms = (_whole(node, value, statistic, bound["self"], facts) for value, statistic in orders)
    return next((norm for norm in norms if norm is not None), None)


@transfer(aten.addcdiv.default)
def quotient_added(node: Node, facts: Facts) -> Fact | None:
    """``self + tensor1 / tensor2``"""
    bound = bind(node)
    statistic = facts.at(bound["tensor2"], Stage.STATISTIC)
    if bound["value"] != 1 or statistic is None or statistic.factor_dtype or statistic.exponent != HALF:
        return None
    return _whole(node, bound["tensor1"], power(statistic, -1), bound["self"], facts)


def _whole(node: Node, value: object, statistic: Fact | None, bias: object, facts: Facts) -> Fact | None:
    """A norm and its bias, made by one operator."""
    if statistic is None or not is_stored(bias) or not spans(bias, node, statistic.dims):
        return None
    if statistic.compute_dtype not in (torch.float32, torch.float64) or statistic.flaw:
        return None
    made = (normed(node, facts.at(value, stage), statistic) for stage in (Stage.SOURCE, Stage.SCALED))
    norm = next((fact for fact in made if fact is not None), None)
    return None if norm is None else changed(norm, shift=bias)
