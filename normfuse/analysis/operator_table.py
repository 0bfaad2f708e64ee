"""The operator table: which operators let a linear map on the channel axis pass.

For a node and an axis of its output, :func:`flow` says which operand axes the channels come from.
The forward direction is the same table read backwards, so a rule is written once. An operator
without a row blocks, by name.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch._ops import HigherOrderOperator
from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.flow import Blocks, Carries, Flow, Scales, Vanishes
from normfuse.analysis.packed import refusal_of_packed
from normfuse.errors import InvariantError
from normfuse.ir.calls import aten, bind, is_call, known_as
from normfuse.ir.dtypes import FLOATS
from normfuse.ir.location import described
from normfuse.ir.readers import operands_of
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import rank_of, tensors_of
from normfuse.report import Refusal

__all__ = ["ROWS", "block", "carried_axis", "flow", "may_multiply", "row", "unknown"]

Row = Callable[[Node, dict[str, Any], int], Flow]
ROWS: dict[object, Row] = {}
#: The operators whose rows may name a number that all channels are multiplied by.
_MULTIPLIERS: set[object] = set()


def row(*targets: object, multiplies: bool = False) -> Callable[[Row], Row]:
    """Register the row of some operators, those of other libraries by name; ``axis`` is never negative.

    Only one that ``multiplies`` may return a ``factor``.
    """

    def register(function: Row) -> Row:
        ROWS.update(dict.fromkeys(targets, function))
        _MULTIPLIERS.update(targets if multiplies else ())
        return function

    return register


def block(node: Node, code: str, message: str, remedy: str = "") -> Blocks:
    """A refusal at ``node``."""
    return Blocks(Refusal(code, message, node.name, remedy))


def may_multiply(node: Node) -> bool:
    """Whether the row of an operator may name a number that it multiplies by."""
    return known_as(node) in _MULTIPLIERS


def flow(node: Node, axis: int) -> Flow:
    """Where the channels along ``axis`` of a node's output come from."""
    if node.op == "placeholder":
        return block(
            node, "stream_enters_graph",
            f"the values come into the graph from outside, as {described(node)}",
            "if this is a part of a model, compile the whole model and avoid graph breaks",
        )  # fmt: skip
    if norm_of(node) is not None:
        return block(
            node, "post_norm",
            f"{described(node)} writes its output into the values that would be centred, and its weight "
            "brings back a mean that depends on the data",
        )  # fmt: skip
    if node.op != "call_function" or not tensors_of(node) or known_as(node) not in ROWS:
        return unknown(node)
    found = ROWS[known_as(node)](node, bind(node) if is_call(node) else {}, axis)
    return _checked(node, found)


def unknown(node: Node) -> Blocks:
    """The answer for an operator of which nothing is known."""
    source = node.args[0] if node.target is operator.getitem else node
    if isinstance(source, Node) and isinstance(source.target, HigherOrderOperator):
        return block(
            node, "inner_graph", f"{described(source)} runs a graph of its own, which is not looked into",
            "keep it off the residual stream, or compile without it",
        )  # fmt: skip
    packed = refusal_of_packed(node)
    if packed is not None:
        return Blocks(packed)
    message = f"{described(node)} is not known to be linear in the channels"
    return block(node, "nonlinear_writer", message)


def _checked(node: Node, found: Flow) -> Flow:
    """What holds for every row: maps act on floating values, and on an operand wherever it is read."""
    if isinstance(found, Carries):
        if found.factor is not None and not may_multiply(node):
            raise InvariantError(f"the row of {node.target} is not registered as one that multiplies")
        operands = found.operands
    elif isinstance(found, Scales):
        operands = ((found.operand, found.axis),)
    else:
        return found
    if not all(t.dtype in FLOATS for n in (node, *(o for o, _ in operands)) for t in tensors_of(n)):
        return block(node, "nonlinear_writer", f"{described(node)} computes with numbers that are not floats")
    roles, distinct = Counter(o for o, _ in operands), tuple(dict.fromkeys(operands))
    reads = Counter(operand for operand in operands_of(node) if operand in roles)
    if reads != roles or len(distinct) != len(roles):
        return block(node, "nonlinear_writer", f"{described(node)} reads one value in two roles")
    if not isinstance(found, Carries):
        return found
    return replace(found, operands=distinct, adders=tuple(a for a in found.adders if roles[a] == 1))


def carried_axis(user: Node, operand: Node, axis: int, maps: Sequence[ChannelMap]) -> int | None:
    """The axis of ``user``'s output on which maps along ``axis`` of an operand come out as they are."""
    if known_as(user) not in ROWS:
        return None
    for out in range(rank_of(user)):
        found = flow(user, out)
        if isinstance(found, Carries) and (operand, axis) in found.operands:
            passes = found.groups == 1 and all(m.admitted_by(found.needs) for m in maps)
            return out if passes else None
    return None


@row(aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default)
def _zeros(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return Vanishes()
