"""Values that are another value times one number, and the norms that alone read them.

    N_eps(c x) = sgn(c) N_{eps / c^2}(x)            N_eps(c x + f) = sgn(c) N_{eps / c^2}(x + f / c)

A norm divides by the size of what it reads, so that of a factor nothing is left but its sign and what it was
beside eps. The second is DeepNorm's sum (Wang et al. 2022, arXiv 2203.00555, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Node

from normfuse.analysis.absorb import absorb
from normfuse.analysis.as_it_is import refusal_of_parts, refuse_second_reader, refuse_widened
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.flow import Carries, Shift
from normfuse.analysis.operator_table import flow, may_multiply
from normfuse.analysis.plan import Plan
from normfuse.analysis.weights import WeightValues, divided_refusal
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import is_bounded_by, lies_alike, rank_of, same, same_shape, tensor_of
from normfuse.report import Refusal

__all__ = ["Factor", "divided", "factor_of", "norms_behind", "refusal_of_place"]


@dataclass(frozen=True)
class Factor:
    """``product`` is ``of`` times ``by``, a number or a value of one entry, or is divided by it.

    ``value`` is the product, or the sum of it and ``beside`` where nothing else reads the product.
    """

    product: Node
    of: Node
    by: float | Node
    divides: bool
    value: Node
    beside: Node | None = None


def factor_of(node: Node) -> Factor | None:
    """What multiplies all of a value by one number; None for any other operator."""
    found = _number(node) or _entry(node)
    if found is None or tensor_of(found.of) is None:
        return None
    (reader, *more) = value_readers(node) or [node]
    if more or not is_call(reader, aten.add.Tensor) or bind(reader)["alpha"] != 1:
        return found
    terms = [bind(reader)["self"], bind(reader)["other"]]
    beside = terms[1 - terms.index(node)]
    if beside is node or tensor_of(beside) is None:
        return found
    return replace(found, value=reader, beside=beside)


def _number(node: Node) -> Factor | None:
    for axis in range(rank_of(node) if may_multiply(node) else 0):
        found = flow(node, axis)
        if isinstance(found, Carries) and found.factor is not None:
            return Factor(node, found.operands[0][0], found.factor, False, node)
    return None


def _entry(node: Node) -> Factor | None:
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return None
    left, right = bind(node)["self"], bind(node)["other"]
    divides = node.target is aten.div.Tensor
    for value, by in ((left, right),) if divides else ((left, right), (right, left)):
        if isinstance(value, Node) and isinstance(by, Node) and value is not by and _is_entry(by):
            return Factor(node, value, by, divides, node)
    return None


def _is_entry(value: Node) -> bool:
    """Whether a value is one number, also one that no tensor holds."""
    found = tensor_of(value)
    return found is None or same(found.numel(), 1)


def refusal_of_place(factor: Factor, weights: WeightValues) -> Refusal | None:
    """Why what is multiplied cannot stand in the place of the product, if so."""
    if weights.divided:
        return divided_refusal(factor.product)
    for one in (factor.value, factor.product, factor.of, factor.beside):
        if one is not None and weights.is_written(one):
            return Refusal("mutated", f"the graph writes in place to {described(one)}", one.name)
    product, value = tensor_of(factor.product), tensor_of(factor.of)
    alike = product is not None and value is not None and product.dtype == value.dtype
    if not alike or not same_shape(factor.product, factor.of):
        message = f"{described(factor.product)} changes the axes or the dtype of what it multiplies"
        return Refusal("dtype_changes", message, factor.product.name)
    if not lies_alike(factor.product, factor.of):
        message = f"{described(factor.product)} changes how its result lies in memory"
        return Refusal("layout", message, factor.product.name)
    return None


def divided(total: Node, other: Node, by: float, weights: WeightValues) -> Plan | Refusal:
    """How the operand ``other`` of a sum comes to be divided by a number, on whichever axis that can be."""
    if weights.program.grad_enabled:
        message = f"gradients are recorded, and the weights that write {described(other)} may train"
        return Refusal("trains", message, other.name)
    refusal = refuse_second_reader(other, weights) or refuse_widened(total, other)
    if refusal is not None:
        return refusal
    axes = reversed(range(rank_of(other) or 1))
    plans = [absorb(other, axis, (Diagonal(1 / by),), weights) for axis in axes]
    plan = next((plan for plan in plans if not isinstance(plan, Refusal)), plans[0])
    if isinstance(plan, Refusal):
        return plan
    return refusal_of_parts(described(total), total, [plan]) or plan


def norms_behind(value: Node, found: list[Node]) -> Refusal | None:
    """Add the norms that read a value, moved or not, to ``found``; why they are not all that reads it."""
    refusals = [_behind(user, value, found) for user in value_readers(value)]
    return next((refusal for refusal in refusals if refusal is not None), None)


def _behind(user: Node, value: Node, found: list[Node]) -> Refusal | None:
    region = norm_of(user)
    if region is not None and region.operands(user).source is value:
        found.append(user)
        if list(user.args).count(value) == 1:
            return None
    if region is not None or not _moves(user, value):
        message = f"{described(user)} reads the values too, multiplied as they are"
        return Refusal("raw_reader", message, user.name)
    beyond = norms_behind(user, found)
    if not is_bounded_by(user):
        return beyond
    message = f"{described(user)} holds smaller values, and others might overflow where these do not"
    return Refusal("narrow_values", message, user.name)


def _moves(user: Node, value: Node) -> bool:
    """Whether an operator does nothing to a value's entries but move them, cast them or average them."""
    flows = (flow(user, axis) for axis in range(rank_of(user)))
    return any(
        isinstance(f, Carries) and f.shift is Shift.EVERYWHERE and [o for o, _ in f.operands] == [value]
        for f in flows
    )
