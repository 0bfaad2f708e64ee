"""Statistics by their moments: the variance, and the squares of values whose last one is left out.

var(x) = mean(x**2) - mean(x)**2,    sum((x - mean(x))**2) = sum(x**2) - sum(x)**2 / N
sum(whole**2) = sum(x**2) + sum(x)**2,    whole = cat([x, -sum(x)])
"""

from __future__ import annotations

import math

from torch.fx import Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.changed import changed
from normfuse.patterns.algebra import count, number, stays
from normfuse.patterns.facts import Fact, Facts, Stage
from normfuse.patterns.signs import signed

__all__ = ["product_of_means", "squared_mean", "variance_by_moments", "with_dropped"]

_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
_DEEPEST = 4


def variance_by_moments(node: Node, square: object, subtracted: Fact | None, facts: Facts) -> Fact | None:
    """``square`` less the ``subtracted`` square of the mean, where both have the same factor."""
    statistic = _matching(square, subtracted, facts)
    if statistic is None or subtracted is None or not _cancel(statistic, subtracted):
        return None
    return stays(node, changed(statistic, centred=True))


def with_dropped(node: Node, square: object, added: Fact | None, facts: Facts) -> Fact | None:
    """``square`` and the ``added`` square of the sum, where both have the same factor."""
    statistic = _matching(square, added, facts)
    divisor = None if statistic is None else _divisor(statistic)
    below = None if added is None else _divisor(added)
    if statistic is None or added is None or divisor is None or below is None:
        return None
    if not math.isclose(statistic.factor / divisor, added.factor / below**2, rel_tol=1e-12):
        return None
    made = changed(statistic, divisor=divisor, basis="drop_last", statistics_dtype=None, stored=None)
    return stays(node, made)


def _divisor(fact: Fact) -> float | None:
    return count(fact) if fact.divisor is None else fact.divisor


def _matching(square: object, of_mean: Fact | None, facts: Facts) -> Fact | None:
    """The mean square of what ``of_mean`` is the mean of, over the same dims and in the same precision."""
    statistic = None if of_mean is None else facts.at(square, Stage.STATISTIC)
    if statistic is None or of_mean is None or statistic.source is not of_mean.source:
        return None
    if statistic.centred or statistic.exponent != 1 or statistic.scale is not None or statistic.flaw:
        return None
    if statistic.basis or (statistic.eps != 0 and statistic.eps_mode != "inside"):
        return None
    of_square = (statistic.dims, statistic.missing, statistic.compute_dtype)
    matches = of_square == (of_mean.dims, of_mean.missing, of_mean.compute_dtype)
    return statistic if matches else None


def _cancel(statistic: Fact, mean: Fact) -> bool:
    """Whether ``a sum(x**2) - b sum(x)**2`` with ``a = N b`` is what remains."""
    if statistic.divisor is None and mean.divisor is None:
        return math.isclose(statistic.factor, mean.factor, rel_tol=1e-12)
    elements = count(statistic)
    if elements is None:
        return False
    of_squares = statistic.factor / (statistic.divisor or elements)
    return math.isclose(of_squares, elements * mean.factor / (mean.divisor or elements) ** 2, rel_tol=1e-12)


def squared_mean(value: object, facts: Facts, depth: int = _DEEPEST) -> Fact | None:
    """The mean of which ``value`` is the square, with the factor of that square.

    The square of a mean is a square of its own, too, so this is no fact about it.
    """
    if not isinstance(value, Node) or depth == 0:
        return None
    if is_call(value, aten.square.default) or _is_second_power(value):
        mean, _ = signed(value.args[0])
        return product_of_means(mean, mean, facts)
    if is_call(value, *_PRODUCTS):
        (left, one), (right, other) = signed(value.args[0]), signed(value.args[1])
        found = product_of_means(left, right, facts) if one == other else None
        return found or _times(value.args[0], value.args[1], facts, depth)
    if is_call(value, *_QUOTIENTS):
        below = number(value.args[1])
        return None if below is None else _times(value.args[0], 1 / below, facts, depth)
    return None


def _is_second_power(value: Node) -> bool:
    return is_call(value, aten.pow.Tensor_Scalar) and bool(value.args[1] == 2)


def _times(left: object, right: object, facts: Facts, depth: int) -> Fact | None:
    for value, factor in ((left, right), (right, left)):
        known = number(factor)
        found = None if known is None else squared_mean(value, facts, depth - 1)
        if found is not None and known is not None:
            return changed(found, factor=found.factor * known)
    return None


def product_of_means(left: object, right: object, facts: Facts) -> Fact | None:
    """Two means of one source as one, whose factor is that of their product."""
    one, other = facts.at(left, Stage.MEAN), facts.at(right, Stage.MEAN)
    if (
        one is None
        or other is None
        or one.flaw
        or changed(one, factor=1.0, divisor=None) != changed(other, factor=1.0, divisor=None)
    ):
        return None
    factor = one.factor * other.factor
    if one.divisor != other.divisor:
        elements = count(one)
        if elements is None:
            return None
        factor *= (one.divisor or elements) / (other.divisor or elements)
    return changed(one, factor=factor)
