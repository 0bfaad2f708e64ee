"""Operators that carry maps, written anew: operands take the maps, and one of them or a bias the shift."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from normfuse.analysis.as_it_is import refuse_second_reader, refuse_widened
from normfuse.analysis.flow import Carries, Shift
from normfuse.analysis.plan import Constant, Leaf, Maps, Plan, Rebuilt, linear_parts, resized
from normfuse.analysis.weights import WeightValues
from normfuse.ir.location import described
from normfuse.report import Refusal

__all__ = ["no_shift", "rebuild"]

#: How a value becomes maps of itself along an axis.
Absorb = Callable[[Node, int, Maps, WeightValues], Plan | Refusal]


def rebuild(
    node: Node, axis: int, found: Carries, maps: Maps, weights: WeightValues, absorb: Absorb
) -> Plan | Refusal:
    """How an operator gives ``maps`` of what it gave, by other operands; ``absorb`` says how these do."""
    changing = next((n for n in node.all_input_nodes if weights.is_written(n)), None)
    if changing is not None:
        message = f"the graph writes in place to {described(changing)}, which {described(node)} reads"
        return Refusal("mutated", message, node.name)
    everywhere = all(m.is_linear for m in maps) or found.shift is Shift.EVERYWHERE
    if not everywhere and not found.adders and not found.bias:
        return no_shift(node)
    plans = _plan_operands(node, found, maps if everywhere else linear_parts(maps), weights, absorb)
    if isinstance(plans, Refusal) or everywhere:
        if isinstance(plans, Refusal):
            return plans
        return Rebuilt(node, tuple(plans.items()), resized=resized(node, axis, maps))
    return _add_once(node, found, plans, maps, weights, absorb)


def _plan_operands(
    node: Node, found: Carries, maps: Maps, weights: WeightValues, absorb: Absorb
) -> dict[Node, Plan] | Refusal:
    plans: dict[Node, Plan] = {}
    for position, (operand, axis) in enumerate(found.operands):
        elsewhere = refuse_second_reader(operand, weights)
        if elsewhere is not None:
            return weights.varies(operand) or elsewhere
        groups = found.groups if position == 0 else 1
        plan = refuse_widened(node, operand) or _absorb_runs(operand, axis, maps, groups, weights, absorb)
        if isinstance(plan, Refusal):
            return plan
        plans[operand] = plan
    return plans


def _absorb_runs(
    node: Node, axis: int, maps: Maps, groups: int, weights: WeightValues, absorb: Absorb
) -> Plan | Refusal:
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
    node: Node, found: Carries, plans: dict[Node, Plan], maps: Maps, weights: WeightValues, absorb: Absorb
) -> Plan | Refusal:
    """The linear part went everywhere; one operand, or a new bias, takes the shift as well."""
    if found.bias:
        weight, axis = found.operands[0]
        if weight not in weights:
            message = f"the weight of {described(node)} depends on data"
            return weights.varies(weight) or Refusal("nonlinear_writer", message, node.name)
        made = Constant(weight, axis, maps, found.groups)
        return Rebuilt(node, tuple(plans.items()), (found.bias, made))
    refusal = no_shift(node)
    for operand, axis in found.operands:
        if operand in found.adders:
            plan = absorb(operand, axis, maps, weights)
            if not isinstance(plan, Refusal):
                return Rebuilt(node, tuple((plans | {operand: plan}).items()))
            refusal = plan
    return refusal


def no_shift(node: Node) -> Refusal:
    """That a value stays where it is for want of something to add to."""
    message = f"no weight or bias that {described(node)} is computed from can take a shift"
    return Refusal("shift_blocked", message, node.name)
