"""The coordinate that values without a mean need not have: the last one is minus the sum of the others.

    whole = cat([x, -sum(x)]),    norm(whole)[:-1] = x / root((sum(x**2) + sum(x)**2) / (n + 1) + eps)

The sign does not matter, since the coordinate is squared.
"""

from __future__ import annotations

import math

from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.sizes import rank_of, same_shape
from normfuse.patterns.affine import piece
from normfuse.patterns.algebra import count, dtype_of, trailing
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.signs import signed

__all__ = ["of_stored"]

_JOINING = (aten.cat.default, aten.concat.default, aten.concatenate.default)
_PARTS = (aten.slice.Tensor, aten.narrow.default)


@transfer(*_JOINING)
def completed(node: Node, facts: Facts) -> Fact | None:
    """Values and behind them their sum, with either sign: a source that knows what it was made of."""
    parts, dtype = bind(node)["tensors"], dtype_of(node)
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        return None
    kept, total = facts.at(parts[0], Stage.SOURCE), facts.at(signed(parts[1])[0], Stage.MEAN)
    if kept is None or total is None or kept.centred or kept.flaw or kept.compute_dtype is None:
        return None
    if total.source is not kept.source or total.dims != _axis(node) or total.missing or not _is_sum(total):
        return None
    exact = total.compute_dtype == dtype and dtype in (kept.compute_dtype, *WIDER.get(kept.compute_dtype, ()))
    return Fact(Stage.SOURCE, node, compute_dtype=dtype, stored=kept.source) if exact else None


def _axis(whole: Node) -> tuple[int, ...]:
    return trailing(bind(whole)["dim"], rank_of(whole))


def _is_sum(total: Fact) -> bool:
    """Whether a sum was divided by nothing."""
    divisor = count(total) if total.divisor is None else total.divisor
    return divisor is not None and math.isclose(total.factor, divisor, rel_tol=1e-12)


@transfer(*_PARTS)
def taken_back(node: Node, facts: Facts) -> Fact | None:
    """What was completed, without the last coordinate again."""
    fact = facts.at(node.args[0], Stage.SOURCE)
    if fact is None or fact.stored is None or fact.centred:
        return None
    if same_shape(node, fact.source):
        return fact
    found = Fact(Stage.SOURCE, fact.stored, compute_dtype=fact.compute_dtype)
    return found if _drops_the_last(node, fact.source, fact.stored) else None


def _drops_the_last(part: Node, whole: Node, stored: Node) -> bool:
    bound = bind(part)
    first, step = bound["start"] in (0, None), bound.get("step", 1) == 1
    along = trailing(bound["dim"], rank_of(part)) == _axis(whole)
    return first and step and along and same_shape(part, stored)


def of_stored(statistic: Fact, subject: Fact) -> Fact:
    """A statistic of what ``subject`` was completed to, as one of ``subject``; another one as it is."""
    if statistic.stored is not subject.source or statistic.centred or statistic.basis:
        return statistic
    exact = statistic.compute_dtype == dtype_of(statistic.source) and statistic.statistics_dtype is None
    if not exact or statistic.dims != _axis(statistic.source):
        return statistic
    return changed(statistic, source=subject.source, stored=None, basis="drop_last")


@piece
def without_the_last(norm: Candidate, reader: Node) -> Candidate | None:
    """A norm of completed values of which all but the last coordinate is read."""
    spec, whole = norm.spec, norm.operands.source
    if norm.stored is None or not is_call(reader, *_PARTS) or len(reader.all_input_nodes) > 1:
        return None
    if spec.kind not in ("rms_norm", "l2_norm") or spec.has_scale or spec.has_shift:
        return None
    if same_shape(reader, norm.root):
        return norm.grown(reader)
    exact = spec.compute_dtype == dtype_of(whole) and spec.statistics_dtype is None and spec.groups == 1
    if not exact or spec.dims != _axis(whole) or not _drops_the_last(reader, whole, norm.stored):
        return None
    operands = changed(norm.operands, source=norm.stored)
    made = norm.grown(
        reader, operands, kind="crms_norm", basis="drop_last", source_dtype=dtype_of(norm.stored)
    )
    return changed(made, stored=None)
