"""The variance by its moments.

var(x) = mean(x**2) - mean(x)**2,    sum((x - mean(x))**2) = sum(x**2) - sum(x)**2 / N
"""

from __future__ import annotations

import math

from torch.fx import Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.changed import changed
from normfuse.patterns.algebra import count, number, stays
from normfuse.patterns.facts import Fact, Facts, Stage

__all__ = ["variance_by_moments"]

_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
_DEEPEST = 4


def variance_by_moments(node: Node, square: object, subtracted: Fact | None, facts: Facts) -> Fact | None:
    """``square`` less the ``subtracted`` square of the mean, where both have the same factor."""
    statistic = facts.at(square, Stage.STATISTIC)
    if statistic is None or subtracted is None or statistic.source is not subtracted.source:
        return None
    if statistic.centred or statistic.exponent != 1 or statistic.scale is not None or statistic.flaw:
        return None
    if statistic.eps != 0 and statistic.eps_mode != "inside":
        return None
    of_square = (statistic.dims, statistic.missing, statistic.compute_dtype)
    if of_square != (subtracted.dims, subtracted.missing, subtracted.compute_dtype):
        return None
    return stays(node, changed(statistic, centred=True)) if _cancel(statistic, subtracted) else None


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
        return product_of_means(value.args[0], value.args[0], facts)
    if is_call(value, *_PRODUCTS):
        left, right = value.args[:2]
        return product_of_means(left, right, facts) or _times(left, right, facts, depth)
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
