"""Why a value cannot come to be another one: who reads it as it is, and how precise it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from normfuse.analysis.plan import Plan, redirected
from normfuse.analysis.weights import WeightValues
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import digits_added
from normfuse.report import Refusal

__all__ = ["read_elsewhere", "refusal_of_parts", "refuse_second_reader", "refuse_widened"]


def refuse_second_reader(node: Node, weights: WeightValues) -> Refusal | None:
    """Why an operator cannot come to give another value, if so; of a weight a copy is made."""
    return None if node in weights or len(value_readers(node)) <= 1 else read_elsewhere(node)


def read_elsewhere(node: Node) -> Refusal:
    """That something else reads a value."""
    return Refusal("raw_reader", f"{described(node)} is also read elsewhere, unchanged", node.name)


def refusal_of_parts(what: str, node: Node, plans: Iterable[Plan]) -> Refusal | None:
    """Why plans cannot be carried out, if so: each would change another part of one value for itself."""
    parts = [part.operand for plan in plans for part in redirected(plan)]
    if len(set(parts)) == len(parts):
        return None
    return Refusal("raw_reader", f"{what} is made of several parts of one value", node.name)


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
