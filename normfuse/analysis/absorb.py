"""Push maps from a written value down into the weights that write it.

    A (s * (W x + b)) = (M diag(s) W) x + A (s * b),    A = M + t

The answer is a plan: which weights take which maps, and which operators on the way are written
anew with other operands. Nothing is changed here.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.as_it_is import read_elsewhere, refuse_second_reader, refuse_widened
from normfuse.analysis.beside import Beside, own_input, with_own_tap
from normfuse.analysis.channel_map import Diagonal, Trait
from normfuse.analysis.flow import Blocks, Carries, Scales, Vanishes
from normfuse.analysis.operator_table import flow
from normfuse.analysis.parts import part_read_apart
from normfuse.analysis.plan import Kept, Leaf, Maps, Plan, Rebuilt, Redirected, linear_parts, resized
from normfuse.analysis.ranges import Piece, narrowed, pieces_of, read_apart, widened
from normfuse.analysis.rebuild import no_shift, rebuild
from normfuse.analysis.weights import WeightValues, divided_refusal
from normfuse.ir.calls import aten
from normfuse.ir.location import described
from normfuse.ir.sizes import lies_alike, rank_of, shape_of, tensor_of
from normfuse.report import Refusal

__all__ = ["absorb", "absorb_alone"]


def _is_linear(maps: Maps) -> bool:
    return all(m.is_linear for m in maps)


def absorb(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """How ``node`` becomes ``maps`` of itself along ``axis`` by changing weights alone.

    ``node`` must have no reader that wants its old value, unless it is a weight value, which gets
    a copy of its own.
    """
    if node in weights:
        return _absorb_weight(node, axis, maps, weights)
    return _absorb_operands(node, axis, maps, weights)


def absorb_alone(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """The same for a value that may have a reader which wants its old value; then it stays."""
    return refuse_second_reader(node, weights) or absorb(node, axis, maps, weights)


def _absorb_weight(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """Fold a weight where it is stored; where that fails, fold what was computed from it."""
    refusal = weights.refusal(node)
    if refusal is not None:
        return refusal
    shape, value = shape_of(node), tensor_of(node)
    if shape is None or not all(isinstance(size, int) for size in shape):
        return Refusal("weight_shape", f"the size of {described(node)} is not a fixed number", node.name)
    if value is not None and not value.is_floating_point():
        message = f"{weights.label(node)} holds whole numbers, to which what changes it would be rounded"
        return Refusal("weight_dtype", message, node.name)
    if node.op != "placeholder" and not weights.is_folded(node):
        deeper = _absorb_operands(node, axis, maps, weights)
        if not isinstance(deeper, Refusal):
            return deeper
    apart = weights.refusal_apart(node, (source for one in maps for source in one.sources))
    return apart or Leaf(node, axis, maps)


def _absorb_operands(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    joined = own_input(node, axis, weights) if all(m.admitted_by(Trait.DIAGONAL) for m in maps) else None
    if joined is not None:
        return _absorb_joined(joined, axis, maps, weights)
    whole = _whole_of(node, axis, maps, weights)
    if whole is not None:
        return _redirect(node, *whole, weights)
    found = flow(node, axis)
    if node.target is aten.detach.default and weights.train(maps):
        return Refusal(
            "grad_mode", f"{described(node)} would keep gradients from what scales its result", node.name
        )
    if isinstance(found, Blocks):
        pieces = pieces_of(node, axis) if all(m.admitted_by(Trait.DIAGONAL) for m in maps) else ()
        if pieces:
            return _absorb_pieces(node, pieces, axis, maps, weights)
        return weights.varies(node) or found.refusal
    if isinstance(found, Vanishes):
        return Kept(node, resized(node, axis, maps)) if _is_linear(maps) else no_shift(node)
    if isinstance(found, Scales):
        return _absorb_scale(node, found, maps, weights)
    return _absorb_carried(node, axis, found, maps, weights)


def _absorb_carried(
    node: Node, axis: int, found: Carries, maps: Maps, weights: WeightValues
) -> Plan | Refusal:
    if not all(m.admitted_by(found.needs) for m in maps):
        return Refusal(
            "grouped_weight", f"{described(node)} is grouped, and its groups do not share weights", node.name
        )
    if found.table and not (_may_copy_table(found, weights) or _keep_table(found, maps, weights)):
        return _table_refusal(node, found, weights)
    if found.factor is not None and not _is_linear(maps):
        # The number goes to the weights, so that a shift can follow.
        return _absorb_scale(node, Scales(*found.operands[0], found.factor), maps, weights)
    return rebuild(node, axis, found, maps, weights, absorb)


def _absorb_pieces(
    node: Node, pieces: tuple[Piece, ...], axis: int, maps: Maps, weights: WeightValues
) -> Plan | Refusal:
    """Into each part that is joined; or into the one value of which this is a part, for all its readers."""
    if node.target not in (aten.cat.default, aten.concat.default):
        return _absorb_part(node, pieces[0], axis, maps, weights)
    if any(weights.is_written(piece.operand) for piece in pieces):
        message = f"the graph writes in place to a value that {described(node)} joins"
        return Refusal("mutated", message, node.name)
    plans: dict[Node, Plan] = {}
    for piece in pieces:
        refusal = refuse_second_reader(piece.operand, weights) or refuse_widened(node, piece.operand)
        plan = refusal or absorb(piece.operand, axis, narrowed(maps, piece.outer, piece.length), weights)
        if isinstance(plan, Refusal):
            return plan
        plans[piece.operand] = plan
    return Rebuilt(node, tuple(plans.items()))


def _whole_of(node: Node, axis: int, maps: Maps, weights: WeightValues) -> tuple[Node, int, Maps] | None:
    """What the channels are a part of, and the maps of it, where nothing else reads them.

    Ranges go on as such where the maps allow it; else their number must stay.
    """
    if node in weights or all(m.admitted_by(Trait.DIAGONAL) for m in maps) or resized(node, axis, maps):
        return None
    part = part_read_apart(node, axis)
    if part is None or weights.is_written(part.whole):
        return None
    return part.whole, part.axis, tuple(map(part.lifted, maps))


def _absorb_part(node: Node, piece: Piece, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    whole = piece.operand
    if whole in weights or not read_apart(whole, axis, node, piece) or weights.is_written(whole):
        return read_elsewhere(whole)
    return _redirect(node, whole, axis, widened(maps, piece.inner, piece.length), weights)


def _redirect(node: Node, whole: Node, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """Into what writes the whole, for all its readers."""
    plan = absorb(whole, axis, maps, weights)
    return plan if isinstance(plan, Refusal) else Redirected(node, whole, plan)


def _absorb_joined(joined: Beside, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """What the weight read is added to its result: the weight does so itself, and the sum is its result."""
    maps = maps if joined.factor == 1 else (Diagonal(joined.factor), *maps)
    plan = absorb(joined.rest, axis, maps, weights)
    return plan if isinstance(plan, Refusal) else with_own_tap(plan, joined, linear_parts(maps))


def _absorb_scale(node: Node, found: Scales, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """Drop the multiplication and give its factor to the weights."""
    if isinstance(found.scale, Node):
        if found.scale not in weights:
            return weights.varies(found.scale) or Refusal(
                "channel_gate",
                f"{described(node)} multiplies each channel by {described(found.scale)}, which depends on "
                "data",
                node.name,
            )
        refusal = weights.refusal(found.scale)
        if refusal is not None:
            return refusal
    before, after = tensor_of(found.operand), tensor_of(node)
    keeps = before is not None and after is not None and before.dtype == after.dtype
    if not keeps or rank_of(found.operand) != rank_of(node):
        return Refusal(
            "channel_gate", f"{described(node)} changes the axes or the dtype of what it scales", node.name
        )
    if not lies_alike(node, found.operand):
        message = f"{described(node)} changes how its result lies in memory"
        return Refusal("layout", message, node.name)
    if weights.divided:
        return divided_refusal(node)
    elsewhere = refuse_second_reader(found.operand, weights)
    if elsewhere is not None:
        return weights.varies(found.operand) or elsewhere
    return absorb(found.operand, found.axis, (Diagonal(found.scale), *maps), weights)


def _may_copy_table(found: Carries, weights: WeightValues) -> bool:
    return weights.program.copies_tables and not weights.is_shared(found.operands[0][0])


def _keep_table(found: Carries, maps: Maps, weights: WeightValues) -> bool:
    """Whether the table holds already what the maps make of it, so that it can be read as it is."""
    table, axis = found.operands[0]
    held = weights.program.weights.get(table)
    if held is None or held.value.is_meta:
        return False
    return all(mapping.keeps(held.value, axis) for mapping in maps)


def _table_refusal(node: Node, found: Carries, weights: WeightValues) -> Refusal:
    table = found.operands[0][0]
    if weights.program.copies_tables:
        return Refusal(
            "weight_tied", f"the table {weights.label(table)} is also read elsewhere, unchanged", node.name,
            "untie the weights, or accept one centring after the lookup",
        )  # fmt: skip
    return Refusal(
        "table_copy", f"a folded copy of the table {weights.label(table)} would hold it in memory twice",
        node.name, "rewrite the model offline, where the table is replaced",
    )  # fmt: skip
