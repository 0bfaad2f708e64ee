"""Table rows of operators that put tokens of one value into another, at places that indices or masks say."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from normfuse.analysis.flow import Blocks, Carries, Flow, Shift
from normfuse.analysis.operator_table import block, row
from normfuse.analysis.rows_layout import MASKS
from normfuse.ir.calls import aten, is_call
from normfuse.ir.location import described
from normfuse.ir.sizes import rank_of, same, shape_of, tensor_of

__all__: list[str] = []


def _torn(node: Node) -> Blocks:
    return block(
        node, "channel_mix", f"{described(node)} puts some channels of a token elsewhere than others"
    )


@row(aten.index_add.default)
def _index_add(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Rows of one value are added to rows of another, as experts return the tokens that they were given."""
    if bound["dim"] % rank_of(node) == axis or rank_of(bound["source"]) != rank_of(node):
        return _torn(node)
    terms = ((bound["self"], axis), (bound["source"], axis))
    return Carries(terms, shift=Shift.ONCE, adders=(bound["self"],))


@row(aten.index_copy.default)
def _index_copy(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Rows of one value take the place of rows of another."""
    if bound["dim"] % rank_of(node) == axis or rank_of(bound["source"]) != rank_of(node):
        return _torn(node)
    return Carries(((bound["self"], axis), (bound["source"], axis)), shift=Shift.EVERYWHERE)


@row(aten.index_put.default)
def _index_put(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Tokens take the place of others, or are added to them; the channels are the last axis of both."""
    whole, values = bound["self"], bound["values"]
    indices = [tensor_of(index) for index in bound["indices"]]
    indexed = sum(t.dim() if t is not None and t.dtype in MASKS else 1 for t in indices)
    sizes, wanted = shape_of(values), shape_of(node)
    fits = sizes and wanted and axis == len(wanted) - 1 >= indexed and same(sizes[-1], wanted[-1])
    if not fits or None in indices:
        return _torn(node)
    terms = ((whole, axis), (values, rank_of(values) - 1))
    if bound["accumulate"]:
        return Carries(terms, shift=Shift.ONCE, adders=(whole,))
    return Carries(terms, shift=Shift.EVERYWHERE)


@row(aten.masked_scatter.default)
def _masked_scatter(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Tokens that a mask chooses take those of another value one after the other.

    Those have as many channels, in their last axis, so that each lies in its place.
    """
    sizes, wanted = shape_of(bound["source"]), shape_of(node)
    fits = sizes and wanted and axis == len(wanted) - 1 and same(sizes[-1], wanted[-1])
    keeps = rank_of(bound["self"]) == rank_of(node) and _is_alike_along(bound["mask"], node, axis)
    if not fits or not keeps:
        return _torn(node)
    terms = ((bound["self"], axis), (bound["source"], rank_of(bound["source"]) - 1))
    return Carries(terms, shift=Shift.EVERYWHERE)


def _is_alike_along(mask: object, node: Node, axis: int) -> bool:
    """Whether a mask says the same of all channels: it has one entry for them, which may be repeated."""
    while isinstance(mask, Node):
        sizes = shape_of(mask) or ()
        place = axis - rank_of(node) + len(sizes)
        if place < 0 or same(sizes[place], 1):
            return True
        if not is_call(mask, aten.expand.default, aten.expand_as.default, aten.to.device, aten.clone.default):
            return False
        mask = mask.args[0]
    return False
