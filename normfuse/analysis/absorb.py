"""Push maps from a written value down into the weights that write it.

    M (s * (W x + b)) = (M diag(s) W) x + M (s * b)

The answer is a plan: which weights take which maps, and which operators on the way are written
anew with other operands. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap, Diagonal
from normfuse.analysis.flow import Blocks, Carries, Scales, Vanishes
from normfuse.analysis.operator_table import flow
from normfuse.analysis.weights import WeightValues
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.report import Refusal

__all__ = ["Kept", "Leaf", "Plan", "Rebuilt", "absorb"]


@dataclass(frozen=True)
class Leaf:
    """Apply ``maps``, innermost first, to a weight value along ``axis``."""

    node: Node
    axis: int
    maps: tuple[ChannelMap, ...]


@dataclass(frozen=True)
class Rebuilt:
    """The same operator with some operands replaced."""

    node: Node
    operands: tuple[tuple[Node, Plan], ...]


@dataclass(frozen=True)
class Kept:
    """The value needs no change: it is zero along the axis."""

    node: Node


Plan = Leaf | Rebuilt | Kept


def absorb(node: Node, axis: int, maps: tuple[ChannelMap, ...], weights: WeightValues) -> Plan | Refusal:
    """How ``node`` becomes ``maps`` of itself along ``axis`` by changing weights alone.

    ``node`` must have no reader that wants its old value, unless it is a weight value, which gets
    a copy of its own.
    """
    if node in weights:
        return _absorb_weight(node, axis, maps, weights)
    return _absorb_operands(node, axis, maps, weights)


def _absorb_weight(
    node: Node, axis: int, maps: tuple[ChannelMap, ...], weights: WeightValues
) -> Plan | Refusal:
    """Fold a weight where it is stored; where that fails, fold what was computed from it."""
    refusal = weights.refusal(node)
    if refusal is not None:
        return refusal
    shape = shape_of(node)
    if shape is None or not all(isinstance(size, int) for size in shape):
        return Refusal(
            "weight_shape", f"the size of the weight value {node.name} is not a fixed number", node.name
        )
    if node.op != "placeholder":
        deeper = _absorb_operands(node, axis, maps, weights)
        if not isinstance(deeper, Refusal):
            return deeper
    return Leaf(node, axis, maps)


def _absorb_operands(
    node: Node, axis: int, maps: tuple[ChannelMap, ...], weights: WeightValues
) -> Plan | Refusal:
    found = flow(node, axis)
    if isinstance(found, Blocks):
        return found.refusal
    if isinstance(found, Vanishes):
        return Kept(node)
    if isinstance(found, Scales):
        return _absorb_scale(node, found, maps, weights)
    if not all(m.admitted_by(found.needs) for m in maps):
        return Refusal(
            "grouped_weight", f"{node.name} is grouped, and its groups share no weights", node.name
        )
    if found.table and not _may_copy_table(found, weights):
        return _table_refusal(node, found, weights)
    return _rebuild(node, found, maps, weights)


def _rebuild(
    node: Node, found: Carries, maps: tuple[ChannelMap, ...], weights: WeightValues
) -> Plan | Refusal:
    changing = next((n for n in node.all_input_nodes if weights.is_written(n)), None)
    if changing is not None:
        return Refusal("mutated", f"the graph writes in place to {changing.name}, read here", node.name)
    plans: list[tuple[Node, Plan]] = []
    for operand, axis in found.operands:
        if operand not in weights and len(operand.users) > 1:
            return _read_elsewhere(operand)
        plan = absorb(operand, axis, maps, weights)
        if isinstance(plan, Refusal):
            return plan
        plans.append((operand, plan))
    return Rebuilt(node, tuple(plans))


def _absorb_scale(
    node: Node, found: Scales, maps: tuple[ChannelMap, ...], weights: WeightValues
) -> Plan | Refusal:
    """Drop the multiplication and give its factor to the weights."""
    if found.scale not in weights:
        return Refusal(
            "channel_gate",
            f"{node.name} multiplies each channel by {found.scale.name}, which depends on data", node.name,
        )  # fmt: skip
    refusal = weights.refusal(found.scale)
    if refusal is not None:
        return refusal
    before, after = tensor_of(found.operand), tensor_of(node)
    keeps = before is not None and after is not None and before.dtype == after.dtype
    if not keeps or not _same_shape(found.operand, node):
        return Refusal("channel_gate", f"{node.name} changes the shape or dtype of what it scales", node.name)
    if found.operand not in weights and len(found.operand.users) > 1:
        return _read_elsewhere(found.operand)
    return absorb(found.operand, found.axis, (Diagonal(found.scale), *maps), weights)


def _same_shape(a: Node, b: Node) -> bool:
    left, right = shape_of(a) or (), shape_of(b) or ()
    return len(left) == len(right) and all(same(x, y) for x, y in zip(left, right, strict=True))


def _may_copy_table(found: Carries, weights: WeightValues) -> bool:
    return weights.program.copies_tables and not weights.is_shared(found.operands[0][0])


def _table_refusal(node: Node, found: Carries, weights: WeightValues) -> Refusal:
    table = found.operands[0][0]
    if weights.program.copies_tables:
        return Refusal(
            "weight_tied", f"the table {weights.label(table)} is read elsewhere, with its mean", node.name,
            "untie the weights, or accept one centring after the lookup",
        )  # fmt: skip
    return Refusal(
        "table_copy", f"centring the table {weights.label(table)} would hold it in memory twice", node.name,
        "rewrite the model offline, where the table is replaced",
    )  # fmt: skip


def _read_elsewhere(node: Node) -> Refusal:
    return Refusal("raw_reader", f"{node.name} is also read elsewhere, with its mean", node.name)
