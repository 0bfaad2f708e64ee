"""Decide which norms of a stream may lose their mean, and at what price.

A value is *clean* when weights alone can make its mean zero. What is not clean hangs, in the
dominator tree of the stream, below the values where a mean comes in; one explicit centring at a
value cleans all that hangs below it. The best single place is the one with most norms below it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from torch.fx import Node

from normfuse.analysis.absorb import absorb
from normfuse.analysis.as_it_is import refuse_widened
from normfuse.analysis.channel_map import Centre
from normfuse.analysis.dirt import Dirt
from normfuse.analysis.exactness import exact_operand, keep_exact
from normfuse.analysis.flow import Blocks, Scales, Vanishes
from normfuse.analysis.operator_table import flow
from normfuse.analysis.plan import Maps, Plan
from normfuse.analysis.stream import Stream, Value
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, is_call
from normfuse.ir.program import Program
from normfuse.ir.sizes import is_expanded, no_larger
from normfuse.report import Refusal

__all__ = ["Decision", "decide"]

CENTRE = (Centre(),)


@dataclass
class Decision:
    """What to do with one stream.

    Attributes:
        converted: norms that become RMSNorm.
        cut: the value to centre explicitly, if any.
        plans: for each value written by weights, the operand (or the value itself) and its plan.
        centred: the values whose mean will be zero, in execution order.
        refusals: norms that stay, and why.
    """

    converted: list[Node] = field(default_factory=list)
    cut: Value | None = None
    plans: dict[Value, list[tuple[Node, Plan]]] = field(default_factory=dict)
    centred: list[Value] = field(default_factory=list)
    refusals: dict[Node, Refusal] = field(default_factory=dict)

    def withdraw(self, refusal: Callable[[Node], Refusal]) -> None:
        """Change nothing after all, for this reason of each norm."""
        self.refusals |= {norm: refusal(norm) for norm in self.converted}
        self.converted, self.centred, self.plans, self.cut = [], [], {}, None


def decide(
    stream: Stream,
    weights: WeightValues,
    order: dict[Node, int],
    may_centre: bool,
    settled: Container[Node] = (),
    maps: Maps = CENTRE,
) -> Decision:
    """Convert every norm of the stream that weights alone, or weights and one centring, make possible.

    One centring is added only where at least two norms lose theirs. Nothing is done for the norms in
    ``settled``, which stay as they are. ``maps`` are what takes the place of centring, for another change.
    """
    decision, dirt = Decision(), Dirt()
    keep_exact(stream)
    members = sorted((m for m in stream.members if m not in stream.raw), key=lambda v: (order[v[0]], v[1]))
    for value in members:
        _judge(value, stream, weights, decision, dirt, maps)
    readable = [(v, n) for v in members for n in stream.norms.get(v, ()) if n not in settled]
    decision.cut = (
        _best_cut([v for v, _ in readable if v in dirt.parent], dirt, stream, order, weights.program)
        if may_centre
        else None
    )
    for value, norm in readable:
        if value not in dirt.parent or decision.cut in dirt.chain(value):
            decision.converted.append(norm)
        else:
            decision.refusals[norm] = dirt.reason[value]
    for value, refusal in stream.raw.items():
        decision.refusals.update(dict.fromkeys(stream.norms.get(value, ()), refusal))
    _collect(decision, stream, order)
    return decision


def _judge(
    value: Value, stream: Stream, weights: WeightValues, decision: Decision, dirt: Dirt, maps: Maps
) -> None:
    """Clean, dirty by its own operator, or dirty by its operands."""
    if value not in stream.carries:
        _judge_origin(value, stream, weights, decision, dirt, maps)
        return
    refusal = exact_operand(value, stream) or _absorb_into_weights(value, stream, weights, decision, maps)
    if refusal is not None:
        dirt.source(value, refusal)
        return
    dirty: list[Value] = []
    for operand in stream.operands[value]:
        if operand in stream.raw and operand not in dirt.parent:
            dirt.source(operand, weights.varies(operand[0]) or _why_raw(operand, stream))
        if operand in dirt.parent:
            dirty.append(operand)
    if dirty:
        dirt.below(value, dirty)


def _why_raw(value: Value, stream: Stream) -> Refusal:
    """The operator that brings a mean in, when there is one; else the reader that wants it."""
    found = flow(*value)
    return found.refusal if isinstance(found, Blocks) else stream.raw[value]


def _absorb_into_weights(
    value: Value, stream: Stream, weights: WeightValues, decision: Decision, maps: Maps
) -> Refusal | None:
    """Plan the weight operands of a carrying operator; the refusal when one of them cannot change."""
    carried = stream.carries[value]
    if not any(o[0] in weights for o in carried.operands) and not carried.needs:
        return None
    whole = absorb_value(value, carried.operands, weights, maps)
    if isinstance(whole, Refusal):
        return whole
    decision.plans[value] = whole
    return None


def absorb_value(
    value: Value, operands: tuple[Value, ...], weights: WeightValues, maps: Maps
) -> list[tuple[Node, Plan]] | Refusal:
    """Plans for the operands of a value that are computed from weights."""
    found = flow(*value)
    table = bool(getattr(found, "table", False))
    if table or bool(getattr(found, "needs", 0)):
        plan = absorb(value[0], value[1], maps, weights)
        if isinstance(plan, Refusal):
            return plan
    plans: list[tuple[Node, Plan]] = []
    for operand, axis in operands:
        if operand in weights:
            plan = refuse_widened(value[0], operand) or absorb(operand, axis, maps, weights)
            if isinstance(plan, Refusal):
                return plan
            plans.append((operand, plan))
    return plans


def _judge_origin(
    value: Value, stream: Stream, weights: WeightValues, decision: Decision, dirt: Dirt, maps: Maps
) -> None:
    found = flow(*value)
    if value not in stream.parts:
        if isinstance(found, Vanishes):
            return
        if isinstance(found, Blocks):
            dirt.source(value, weights.varies(value[0]) or found.refusal)
            return
        assert isinstance(found, Scales)
    plan = absorb(value[0], value[1], maps, weights)
    if isinstance(plan, Refusal):
        dirt.source(value, plan)
    else:
        decision.plans[value] = [(value[0], plan)]


def _best_cut(
    dirty: list[Value], dirt: Dirt, stream: Stream, order: dict[Node, int], program: Program
) -> Value | None:
    """The one place below which most norms hang.

    Memory that is written later cannot be one, nor a value larger than all that those norms read:
    centring it would cost more than they save. Nor can one that shows entries in several places: what it is
    an expansion of is smaller, and all that is known of layouts behind it would be another. Of several with
    as many norms below them it is the last, or a table's lookup where the program asks for that.
    """

    def rank(candidate: Value) -> tuple[int, bool, int]:
        is_lookup = program.centres_lookups and is_call(candidate[0], aten.embedding.default)
        return len(below[candidate]), is_lookup, order[candidate[0]]

    below: dict[Value, list[Node]] = {}
    for value in dirty:
        for candidate in dirt.chain(value):
            below.setdefault(candidate, []).append(value[0])
    allowed = [
        candidate
        for candidate, read in below.items()
        if len(read) >= 2
        and candidate not in stream.mutated
        and no_larger(candidate[0], read)
        and not is_expanded(candidate[0])
    ]
    return max(allowed, key=rank, default=None)


def _collect(decision: Decision, stream: Stream, order: dict[Node, int]) -> None:
    """Keep only the plans that a converted norm depends on."""
    reads = {v: set(ns) for v, ns in stream.norms.items()}
    stack = [v for v, ns in reads.items() if ns & set(decision.converted)]
    needed: set[Value] = set()
    while stack:
        value = stack.pop()
        if value in needed:
            continue
        needed.add(value)
        if value != decision.cut and value not in stream.raw:
            stack.extend(stream.operands.get(value, ()))
    if not needed:
        decision.cut = None
    decision.centred = sorted(needed, key=lambda v: (order[v[0]], v[1]))
    made = {v for v in needed if v != decision.cut and v not in stream.raw}
    decision.plans = {v: p for v, p in decision.plans.items() if v in made}
