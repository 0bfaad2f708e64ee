"""Transfer functions of the operators that join a source with its statistics.

    normed = y * (mean(y**2) + eps) ** -1/2,    y = x  or  y = x - mean(x)

Each function maps facts about the inputs to a fact about the result, or to None when the
operator leads away from a norm. Equal functions reach equal facts; statistics of another tensor,
over other dimensions or in another precision never meet.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.patterns import offsets, roots, sums
from normfuse.patterns.algebra import HALF, number, power, stays, times
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.fitting import normed
from normfuse.patterns.masked import CODE
from normfuse.patterns.operands import is_stored, varying_dims
from normfuse.patterns.statistics import square

__all__ = ["divide", "multiply", "roots", "sums"]


@transfer(aten.mul.Tensor, aten.mul.Scalar)
def multiply(node: Node, facts: Facts) -> Fact | None:
    left, right = node.args[0], node.args[1]
    if left is right:
        return square(node, left, facts)
    for value, factor in ((left, right), (right, left)):
        made = _times_number(node, value, factor, facts) or _times_statistic(node, value, factor, facts)
        if made is not None:
            return made
    made = offsets.product(node, left, right, facts) or _times_weight(node, left, right, facts)
    return made or _times_weight(node, right, left, facts)


def _times_number(node: Node, value: object, factor: object, facts: Facts) -> Fact | None:
    known, fact = number(factor), facts.at(value, Stage.STATISTIC, Stage.MEAN)
    return None if known is None or fact is None else stays(node, times(fact, known))


def _times_statistic(node: Node, value: object, factor: object, facts: Facts) -> Fact | None:
    statistic = facts.at(factor, Stage.STATISTIC)
    if statistic is None:
        return None
    for stage in (Stage.SOURCE, Stage.SCALED):
        made = normed(node, facts.at(value, stage), statistic)
        if made is not None:
            return made
    return _linear_image(value, factor, statistic, facts)


def _linear_image(value: object, factor: object, statistic: Fact, facts: Facts) -> Fact | None:
    """The norm of what a linear reads may be multiplied after it: ``W (x r) = (W x) r``."""
    if not is_call(value, aten.linear.default) or not isinstance(value, Node) or statistic.exponent != -HALF:
        return None
    bound = bind(value)
    source = facts.at(bound["input"], Stage.SOURCE)
    fits = source is not None and source.source is statistic.source and not statistic.centred
    if not fits or bound["bias"] is not None or statistic.dims != (-1,) or statistic.missing:
        return None
    if not isinstance(factor, Node) or statistic.scale is not None:
        return None
    return changed(statistic, stage=Stage.FACTOR, root=factor)


def _times_weight(node: Node, value: object, weight: object, facts: Facts) -> Fact | None:
    """A weight may be multiplied first, to the source or to its statistic."""
    if not is_stored(weight):
        return None
    statistic = facts.at(value, Stage.STATISTIC)
    fact = statistic or (facts.at(value, Stage.SOURCE) if _is_smaller(weight, value, node) else None)
    exact = (
        fact is not None and fact.compute_dtype in (torch.float32, torch.float64) and not fact.factor_dtype
    )
    if fact is None or not exact or fact.scale is not None or (statistic and fact.missing):
        return None
    made = changed(fact, scale=weight, stage=fact.stage if statistic else Stage.SCALED)
    return stays(node, made)


def _is_smaller(weight: Node, value: object, result: Node) -> bool:
    own, other = varying_dims(weight, result), varying_dims(value, result)
    return own is not None and other is not None and len(own) < len(other)


@transfer(aten.div.Tensor, aten.div.Scalar)
def divide(node: Node, facts: Facts) -> Fact | None:
    numerator, denominator = node.args[0], node.args[1]
    below = number(denominator)
    if below is not None:
        return _times_number(node, numerator, 1 / below, facts)
    total = facts.at(numerator, Stage.STATISTIC, Stage.MEAN)
    if total is not None and total.flaw == CODE:
        return total
    statistic = facts.at(denominator, Stage.STATISTIC)
    inverse = None if statistic is None or statistic.factor_dtype else power(statistic, -1)
    if inverse is None:
        return None
    above = number(numerator)
    if above is not None:
        return stays(node, times(inverse, above))
    for stage in (Stage.SOURCE, Stage.SCALED):
        made = normed(node, facts.at(numerator, stage), inverse)
        if made is not None:
            return made
    part = offsets.quotient(node, numerator, inverse, facts)
    if part is not None or not is_stored(numerator) or inverse.scale is not None or inverse.missing:
        return part
    return stays(node, changed(inverse, scale=numerator))
