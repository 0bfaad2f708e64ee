"""Whether a source and its own statistic fit together: shape, order of dimensions and precision."""

from __future__ import annotations

import torch
from torch.fx import Node

from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.sizes import same, shape_of
from normfuse.patterns.algebra import HALF, dtype_of
from normfuse.patterns.dropped import of_stored
from normfuse.patterns.facts import Fact, Stage
from normfuse.patterns.operands import spans

__all__ = ["aligned", "keeps_shape", "normed", "same_precision"]


def aligned(statistic: Fact) -> bool:
    """Whether a statistic broadcasts over the dimensions it was made of: what is missing comes first."""
    full = shape_of(statistic.source)
    return full is not None and statistic.missing == tuple(
        range(-len(full), len(statistic.missing) - len(full))
    )


def keeps_shape(node: Node, fact: Fact) -> bool:
    """Whether a value has the shape of what it was made of."""
    shape, full = shape_of(node), shape_of(fact.source)
    if shape is None or full is None or len(shape) != len(full):
        return False
    return all(same(a, b) for a, b in zip(shape, full, strict=True))


def same_precision(node: Node, subject: Fact, statistic: Fact) -> bool:
    """A source that is not centred may be read before its widening cast: the product widens it."""
    if statistic.flaw:
        return True
    own, compute = subject.compute_dtype, statistic.compute_dtype
    if own is None or compute is None:
        return False
    reads_raw = not subject.centred and compute in WIDER.get(own, ())
    factor = statistic.factor_dtype or compute
    return (own == compute or reads_raw) and dtype_of(node) == torch.promote_types(own, factor)


def normed(node: Node, subject: Fact | None, statistic: Fact | None) -> Fact | None:
    """``subject`` times the inverse root of its own statistic, at full precision."""
    if subject is None or statistic is None:
        return None
    statistic = of_stored(statistic, subject)
    if subject.subject != statistic.subject:
        return None
    if statistic.exponent != -HALF or (subject.centred and subject.dims != statistic.dims):
        return None
    if not same_precision(node, subject, statistic) or not keeps_shape(node, statistic):
        return None
    scale = subject.scale or statistic.scale
    if (subject.scale and statistic.scale) or not aligned(statistic):
        return None
    if scale is not None and not spans(scale, node, statistic.dims):
        return None
    return changed(statistic, stage=Stage.NORMED, scale=scale)
