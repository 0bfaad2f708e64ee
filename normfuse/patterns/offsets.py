"""Norms whose mean is removed last, after the root has multiplied both.

    y = x * r + (bias - mean(x) * r),    r = weight / root

The product with the source is UNCENTRED, the product with the mean an OFFSET.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from normfuse.ir.changed import changed
from normfuse.patterns.algebra import HALF, divided_by_count, dtype_of, stays
from normfuse.patterns.facts import Fact, Facts, Stage
from normfuse.patterns.fitting import aligned, keeps_shape, same_precision
from normfuse.patterns.operands import is_stored, spans
from normfuse.patterns.signs import signed

__all__ = ["joined", "part", "product", "quotient", "shifted", "with_sign"]


def product(node: Node, left: object, right: object, facts: Facts) -> Fact | None:
    """A part made, or a part times the weight of the norm."""
    (left, one), (right, other) = signed(left), signed(right)
    for value, factor in ((left, right), (right, left)):
        made = _made(node, value, facts.at(factor, Stage.STATISTIC), facts)
        made = made or _weighted(node, value, factor, facts)
        if made is not None:
            return with_sign(made, one * other)
    return None


def quotient(node: Node, above: object, inverse: Fact, facts: Facts) -> Fact | None:
    """A part made by division; ``inverse`` is the inverse of what is below."""
    above, sign = signed(above)
    return with_sign(_made(node, above, inverse, facts), sign)


def part(value: object, sign: int, facts: Facts) -> Fact | None:
    """The part that a term of a sum is; ``sign`` is that of the term."""
    return with_sign(facts.at(value, Stage.UNCENTRED, Stage.OFFSET), sign)


def with_sign(fact: Fact | None, sign: int) -> Fact | None:
    """A part times one or minus one; None where that is no part."""
    if sign == 1 or fact is None:
        return fact
    is_bare = fact.stage is Stage.OFFSET and fact.shift is None
    return changed(fact, sign=-fact.sign) if is_bare else None


def _made(node: Node, value: object, statistic: Fact | None, facts: Facts) -> Fact | None:
    """The source, or its mean, times the inverse root of a centred statistic."""
    if statistic is None or not statistic.centred or statistic.exponent != -HALF or statistic.flaw:
        return None
    if statistic.factor_dtype is not None or not aligned(statistic):
        return None
    made = _offset(node, facts.at(value, Stage.MEAN), statistic)
    found = (_uncentred(node, facts.at(value, s), statistic) for s in (Stage.SOURCE, Stage.SCALED))
    return made or next((part for part in found if part is not None), None)


def _offset(node: Node, mean: Fact | None, statistic: Fact) -> Fact | None:
    if mean is None or mean.flaw:
        return None
    own = (mean.source, mean.dims, mean.compute_dtype)
    if own != (statistic.source, statistic.dims, statistic.compute_dtype):
        return None
    if not divided_by_count(mean) or not aligned(mean):
        return None
    return stays(node, changed(statistic, stage=Stage.OFFSET))


def _uncentred(node: Node, source: Fact | None, statistic: Fact) -> Fact | None:
    if source is None or source.source is not statistic.source or source.centred or source.flaw:
        return None
    if (source.scale and statistic.scale) or not same_precision(node, source, statistic):
        return None
    made = changed(statistic, stage=Stage.UNCENTRED, scale=source.scale or statistic.scale)
    return stays(node, made) if keeps_shape(node, statistic) else None


def _weighted(node: Node, value: object, weight: object, facts: Facts) -> Fact | None:
    fact = facts.at(value, Stage.UNCENTRED, Stage.OFFSET)
    if fact is None or fact.scale is not None or fact.shift is not None or not _is_exact(fact):
        return None
    return stays(node, changed(fact, scale=weight)) if is_stored(weight) else None


def shifted(node: Node, fact: Fact | None, bias: object) -> Fact | None:
    """A part of the norm plus its bias."""
    if fact is None or fact.shift is not None or not is_stored(bias) or not _is_exact(fact):
        return None
    removes = fact.stage is Stage.UNCENTRED or fact.sign == -1
    return stays(node, changed(fact, shift=bias)) if removes else None


def _is_exact(fact: Fact) -> bool:
    """Whether a weight and a bias may come before the mean is removed: nothing is rounded in between."""
    return fact.compute_dtype in (torch.float32, torch.float64)


def joined(node: Node, one: Fact | None, other: Fact | None) -> Fact | None:
    """The norm that the source's part and the mean's, a negative one, are together."""
    if one is None or other is None or {one.stage, other.stage} != {Stage.UNCENTRED, Stage.OFFSET}:
        return None
    if one.sign * other.sign != -1 or (one.shift and other.shift):
        return None
    shift, (left, right) = one.shift or other.shift, map(_plain, (one, other))
    if left != right or not keeps_shape(node, left) or dtype_of(node) != left.compute_dtype:
        return None
    if not all(n is None or spans(n, node, left.dims) for n in (left.scale, shift)):
        return None
    return changed(left, shift=shift)


def _plain(fact: Fact) -> Fact:
    return changed(fact, stage=Stage.NORMED, shift=None, sign=1)
