"""Table rows of operators that reduce, resample or mask positions, channel by channel."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from normfuse.analysis.flow import Carries, Flow, Shift
from normfuse.analysis.operator_table import block, row
from normfuse.ir.calls import aten, is_call
from normfuse.ir.location import described
from normfuse.ir.sizes import rank_of, same, shape_of

__all__: list[str] = []


def _reduces(node: Node) -> Flow:
    return block(node, "channel_mix", f"{described(node)} computes a value from several channels")


@row(aten.mean.dim, aten.sum.dim_IntList)
def _reduce(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Sums over other axes than the channels."""
    source = bound["self"]
    rank = len(shape_of(source) or ())
    dims = sorted(d + rank if d < 0 else d for d in (bound["dim"] or range(rank)))
    kept = [d for d in range(rank) if d not in dims] if not bound["keepdim"] else list(range(rank))
    inner = kept[axis]
    if inner in dims:
        return _reduces(node)
    averages = node.target is aten.mean.dim
    return Carries(((source, inner),), shift=Shift.EVERYWHERE if averages else Shift.NOWHERE)


_RESAMPLES_1D = (
    aten.upsample_nearest1d.vec, aten.upsample_linear1d.vec, aten.avg_pool1d.default,
    aten.adaptive_avg_pool1d.default,
)  # fmt: skip
_RESAMPLES_2D = (
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default,
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
)  # fmt: skip


@row(*_RESAMPLES_1D, *_RESAMPLES_2D)
def _resample(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Positions are weighted sums of positions, the same for every channel of a [N] x C x ... value."""
    source = node.args[0]
    positions = 1 if is_call(node, *_RESAMPLES_1D) else 2
    if not isinstance(source, Node) or axis >= rank_of(source) - positions:
        return _reduces(node)
    return Carries(((source, axis),), shift=Shift.EVERYWHERE if _averages(bound) else Shift.NOWHERE)


def _averages(bound: dict[str, Any]) -> bool:
    """Whether the weights of each sum add up to one, so that a constant stays itself."""
    counts_zeros = bound.get("count_include_pad", False) and any(p != 0 for p in bound["padding"])
    return not counts_zeros and bound.get("divisor_override") is None


def _per_token(mask: object, node: Node, axis: int) -> bool:
    shape, out = shape_of(mask), shape_of(node)
    if shape is None or out is None:
        return False
    under = axis - len(out) + len(shape)
    return under < 0 or same(shape[under], 1)


@row(aten.masked_fill.Scalar)
def _masked_fill(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Whole tokens set to zero."""
    full, shape = shape_of(node), shape_of(bound["self"])
    keeps_rank = full is not None and shape is not None and len(full) == len(shape)
    if bound["value"] != 0 or not keeps_rank or not _per_token(bound["mask"], node, axis):
        return _reduces(node)
    return Carries(((bound["self"], axis),))


@row(aten.where.self)
def _where(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """A choice between whole tokens."""
    out = shape_of(node) or ()
    operands: list[tuple[Node, int]] = []
    for branch in (bound["self"], bound["other"]):
        shape = shape_of(branch)
        under = axis - len(out) + len(shape or ())
        if shape is None or under < 0 or not same(shape[under], out[axis]):
            return _reduces(node)
        operands.append((branch, under))
    if not _per_token(bound["condition"], node, axis):
        return _reduces(node)
    return Carries(tuple(operands), shift=Shift.EVERYWHERE)
