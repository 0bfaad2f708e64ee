"""Push maps from a written value down into the weights that write it.

    A (s * (W x + b)) = (M diag(s) W) x + A (s * b),    A = M + t

The answer is a plan: which weights take which maps, and which operators on the way are written
anew with other operands. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.beside import Beside, own_input
from normfuse.analysis.channel_map import Diagonal, Trait
from normfuse.analysis.flow import Blocks, Carries, Scales, Shift, Vanishes
from normfuse.analysis.operator_table import flow
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.parts import Part, part_of
from normfuse.analysis.plan import (
    Constant,
    Kept,
    Leaf,
    Maps,
    Plan,
    Rebuilt,
    Redirected,
    linear_parts,
    redirected,
)
from normfuse.analysis.ranges import Piece, narrowed, pieces_of, read_apart, widened
from normfuse.analysis.weights import WeightValues, divided_refusal
from normfuse.ir.calls import aten
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import digits_added, lies_alike, rank_of, shape_of, static_size, tensor_of
from normfuse.report import Refusal

__all__ = ["absorb", "absorb_alone", "refusal_of_parts", "refuse_second_reader", "refuse_widened"]


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


def refusal_of_parts(what: str, node: Node, plans: Iterable[Plan]) -> Refusal | None:
    """Why plans cannot be carried out, if so: each would change another part of one value for itself."""
    parts = [part.operand for plan in plans for part in redirected(plan)]
    if len(set(parts)) == len(parts):
        return None
    return Refusal("raw_reader", f"{what} is made of several parts of one value", node.name)


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
    part = _part_read_apart(node, axis, maps, weights)
    if part is not None:
        return _absorb_apart(node, part, maps, weights)
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
        return Kept(node, _resized(node, axis, maps)) if _is_linear(maps) else _no_shift(node)
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
        return _absorb_factor(node, found, found.factor, maps, weights)
    return _rebuild(node, axis, found, maps, weights)


def _resized(node: Node, axis: int, maps: Maps) -> tuple[int, int] | None:
    """The axis, and the size that the maps give it, where that is another one."""
    before = static_size(node, axis)
    if before is None:
        return None
    width = before
    for mapping in maps:
        width = mapping.width(width)
    return None if width == before else (axis, width)


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


def _part_read_apart(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Part | None:
    """What the channels are a part of, where nothing else reads them and the maps leave their number."""
    if node in weights or all(m.admitted_by(Trait.DIAGONAL) for m in maps) or _resized(node, axis, maps):
        return None
    part = part_of(node, axis)
    if part is None or weights.is_written(part.whole) or not part.is_read_apart(node):
        return None
    return part


def _absorb_apart(node: Node, part: Part, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """Into what writes the whole, for these channels alone."""
    plan = absorb(part.whole, part.axis, tuple(map(part.lifted, maps)), weights)
    return plan if isinstance(plan, Refusal) else Redirected(node, part.whole, plan)


def _absorb_part(node: Node, piece: Piece, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    whole = piece.operand
    if whole in weights or not read_apart(whole, axis, node, piece) or weights.is_written(whole):
        return _read_elsewhere(whole)
    plan = absorb(whole, axis, widened(maps, piece.inner, piece.length), weights)
    return plan if isinstance(plan, Refusal) else Redirected(node, whole, plan)


def _absorb_joined(joined: Beside, axis: int, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    """What the weight read is added to its result: the weight does so itself, and the sum is its result."""
    maps = maps if joined.factor == 1 else (Diagonal(joined.factor), *maps)
    plan = absorb(joined.rest, axis, maps, weights)
    return plan if isinstance(plan, Refusal) else _with_own_tap(plan, joined, linear_parts(maps))


def _with_own_tap(plan: Plan, joined: Beside, maps: Maps) -> Plan:
    """A plan in which the reader's weight, which takes ``maps``, has another tap first."""
    if not isinstance(plan, Rebuilt):
        return plan
    if plan.node is not joined.reader:
        operands = tuple((node, _with_own_tap(deeper, joined, maps)) for node, deeper in plan.operands)
        return replace(plan, operands=operands)
    planned = dict(plan.operands)
    before = planned[joined.weight]
    taken = before.maps if isinstance(before, Leaf) and before.node is joined.weight else maps
    own = OwnTap(joined.maps, joined.groups)
    planned[joined.weight] = Leaf(joined.weight, 0, (own, *taken))
    return replace(plan, operands=tuple(planned.items()))


def _no_shift(node: Node) -> Refusal:
    message = f"no weight or bias that {described(node)} is computed from can take a shift"
    return Refusal("shift_blocked", message, node.name)


def _rebuild(node: Node, axis: int, found: Carries, maps: Maps, weights: WeightValues) -> Plan | Refusal:
    changing = next((n for n in node.all_input_nodes if weights.is_written(n)), None)
    if changing is not None:
        message = f"the graph writes in place to {described(changing)}, which {described(node)} reads"
        return Refusal("mutated", message, node.name)
    everywhere = _is_linear(maps) or found.shift is Shift.EVERYWHERE
    if not everywhere and not found.adders and not found.bias:
        return _no_shift(node)
    plans = _plan_operands(node, found, maps if everywhere else linear_parts(maps), weights)
    if isinstance(plans, Refusal) or everywhere:
        if isinstance(plans, Refusal):
            return plans
        return Rebuilt(node, tuple(plans.items()), resized=_resized(node, axis, maps))
    return _add_once(node, found, plans, maps, weights)


def _plan_operands(
    node: Node, found: Carries, maps: Maps, weights: WeightValues
) -> dict[Node, Plan] | Refusal:
    plans: dict[Node, Plan] = {}
    for position, (operand, axis) in enumerate(found.operands):
        elsewhere = refuse_second_reader(operand, weights)
        if elsewhere is not None:
            return weights.varies(operand) or elsewhere
        groups = found.groups if position == 0 else 1
        plan = refuse_widened(node, operand) or _absorb_runs(operand, axis, maps, groups, weights)
        if isinstance(plan, Refusal):
            return plan
        plans[operand] = plan
    return plans


def refuse_widened(node: Node, operand: Node) -> Refusal | None:
    """Weights in the operand's dtype would round what is exact to the width of the result."""
    if digits_added(node, operand) <= 0:
        return None
    return Refusal(
        "narrow_values",
        f"{described(node)} takes exact values to a wider dtype, and a changed weight would round them "
        "to the narrow one", node.name,
        "keep what the norm reads in the dtype that it computes in",
    )  # fmt: skip


def _absorb_runs(node: Node, axis: int, maps: Maps, groups: int, weights: WeightValues) -> Plan | Refusal:
    """A weight whose first axis is several runs must be one of the model's own, to be mapped as it lies."""
    if groups == 1:
        return absorb(node, axis, maps, weights)
    if node not in weights:
        return weights.varies(node) or Refusal(
            "grouped_weight", f"{described(node)}, a grouped operator's weight, depends on data", node.name
        )
    refusal = weights.refusal(node)
    return refusal if refusal is not None else Leaf(node, axis, maps, groups)


def _add_once(
    node: Node, found: Carries, plans: dict[Node, Plan], maps: Maps, weights: WeightValues
) -> Plan | Refusal:
    """The linear part went everywhere; one operand, or a new bias, takes the shift as well."""
    if found.bias:
        weight, axis = found.operands[0]
        if weight not in weights:
            message = f"the weight of {described(node)} depends on data"
            return weights.varies(weight) or Refusal("nonlinear_writer", message, node.name)
        made = Constant(weight, axis, maps, found.groups)
        return Rebuilt(node, tuple(plans.items()), (found.bias, made))
    refusal = _no_shift(node)
    for operand, axis in found.operands:
        if operand in found.adders:
            plan = absorb(operand, axis, maps, weights)
            if not isinstance(plan, Refusal):
                return Rebuilt(node, tuple((plans | {operand: plan}).items()))
            refusal = plan
    return refusal


def _absorb_factor(
    node: Node, found: Carries, factor: float, maps: Maps, weights: WeightValues
) -> Plan | Refusal:
    """Drop the multiplication by a number and give the number to the weights, so that a shift can follow."""
    operand, axis = found.operands[0]
    return _absorb_scale(node, Scales(operand, axis, factor), maps, weights)


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


def refuse_second_reader(node: Node, weights: WeightValues) -> Refusal | None:
    """Why an operator cannot come to give another value, if so; of a weight a copy is made."""
    return None if node in weights or len(value_readers(node)) <= 1 else _read_elsewhere(node)


def _read_elsewhere(node: Node) -> Refusal:
    return Refusal("raw_reader", f"{described(node)} is also read elsewhere, unchanged", node.name)
