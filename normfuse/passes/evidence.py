"""What a changed norm rests on: the nodes that discharge its side conditions, the weights that change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.fx import Node

from normfuse.analysis.beside import Beside
from normfuse.analysis.centring import Decision
from normfuse.analysis.forward import Pushed
from normfuse.analysis.plan import Kept, Leaf, Plan, Rebuilt, Redirected
from normfuse.analysis.reads import Read
from normfuse.analysis.stream import Stream, Value
from normfuse.ir.calls import bind
from normfuse.ir.program import Input
from normfuse.ir.sizes import tensors_of
from normfuse.passes.rule import Claim
from normfuse.passes.work import Work

__all__ = [
    "Certificate",
    "certificate",
    "evidence",
    "folded_before",
    "folded_behind",
    "folded_beside",
    "folded_into_readers",
]

Certificate = dict[str, Any]


def evidence(rule: Claim, norm: Node, stream: Stream, decision: Decision, work: Work) -> Certificate:
    """Why a norm may read a stream that weights changed."""
    start = next(value for value, norms in stream.norms.items() if norm in norms)
    cone = _cone(start, stream, decision)
    plans = [plan for value in cone for _, plan in decision.plans.get(value, ())]
    writers = [v[0].name for v in cone if v in decision.plans or v == decision.cut]
    readers = sorted({n.name for v in cone if v not in stream.raw for n in stream.norms.get(v, ())})
    weights = [node for plan in plans for node in _roots(plan)]
    made = certificate(rule, (writers, readers), weights, work)
    return made | {"centred_explicitly": [] if decision.cut not in cone else [decision.cut[0].name]}


def folded_before(rule: Claim, norm: Node, plan: Plan, work: Work) -> Certificate:
    """Why the weights that write what a norm reads may do what it did."""
    discharged = (_operands(norm), _rebuilt(plan))
    return certificate(rule, discharged, _roots(plan), work, "before")


def folded_behind(rule: Claim, norm: Node, found: Pushed, work: Work) -> Certificate:
    """Why the weights that read what a norm gives, and those of what is added to it, may do what it did."""
    held = [*norm.all_input_nodes[1:], *(node for read in found.reads for node in _weights_of(read))]
    held += [root for one in found.sums for root in _roots(one.plan)]
    held += [node for reader, _, _ in found.norms for node in reader.all_input_nodes[1:]]
    readers = [read.node for read in found.reads] + [reader for reader, _, _ in found.norms]
    readers += [node for one in found.sums for node in (one.node, *one.changed)]
    return certificate(rule, (_operands(norm), [node.name for node in readers]), held, work, "behind")


def folded_beside(rule: Claim, norm: Node, found: Beside, work: Work) -> Certificate:
    """Why the weight beside a norm may do what it did."""
    scales = [source for mapping in found.maps for source in mapping.sources]
    held = [*norm.all_input_nodes[1:], *scales, *found.reader.all_input_nodes[1:]]
    return certificate(rule, (_operands(norm), [found.reader.name]), held, work, "beside")


def folded_into_readers(rule: Claim, norm: Node, reads: Sequence[Read], work: Work) -> Certificate:
    """Why the weights that read a norm may take its weight and bias."""
    held = [*norm.all_input_nodes[1:], *(node for read in reads for node in _weights_of(read))]
    names = [read.node.name for read in reads]
    return certificate(rule, (_operands(norm), names), held, work)


def certificate(
    rule: Claim, discharged: Sequence[list[str]], held: Iterable[Node], work: Work, form: str = ""
) -> Certificate:
    """The beginning of a certificate; measured errors and hashes of weights are added by who has them.

    ``discharged`` are the nodes for each condition of the rule but the last, which is about the stored
    weights that the nodes ``held`` are made of; ``form`` is the one of the rule's forms that was used.
    """
    known = work.program.weights
    weights = sorted({stored for node in held for stored in _stored(node, known)})
    return {
        "rule": rule.name,
        "numerics": rule.numerics.value,
        "equation": rule.forms[form] if form else rule.equation,
        "source": rule.source,
        "conditions": [
            {"condition": condition, "nodes": nodes}
            for condition, nodes in zip(rule.conditions, (*discharged, weights), strict=True)
        ],
        "weights": [{"name": name} for name in weights],
    }


def _cone(start: Value, stream: Stream, decision: Decision) -> list[Value]:
    """The values that the norm reads, back to where weights write them or a centring stands."""
    seen, stack = {start}, [start]
    while stack:
        value = stack.pop()
        if value == decision.cut or value in stream.raw:
            continue
        for operand in stream.operands.get(value, ()):
            if operand not in seen:
                seen.add(operand)
                stack.append(operand)
    return sorted(seen, key=lambda v: (v[0].name, v[1]))


def _weights_of(read: Read) -> list[Node]:
    held = (read.leaf.node, bind(read.node).get(read.bias))
    return [node for node in held if isinstance(node, Node)]


def _operands(norm: Node) -> list[str]:
    return [node.name for node in norm.all_input_nodes[1:] if tensors_of(node)]


def _rebuilt(plan: Plan) -> list[str]:
    """The operators that a plan makes anew, or whose operands it changes."""
    if isinstance(plan, Rebuilt):
        return [plan.node.name, *(name for _, deeper in plan.operands for name in _rebuilt(deeper))]
    return [plan.node.name, *_rebuilt(plan.plan)] if isinstance(plan, Redirected) else []


def _roots(plan: Plan) -> list[Node]:
    """The values of weights that a plan changes or joins."""
    if isinstance(plan, Kept):
        return []
    if isinstance(plan, Redirected):
        return _roots(plan.plan)
    if isinstance(plan, Rebuilt):
        return [root for _, deeper in plan.operands for root in _roots(deeper)]
    roots = [plan.node] if isinstance(plan, Leaf) else []
    return roots + [source for mapping in plan.maps for source in mapping.sources]


def _stored(node: Node, known: Mapping[Node, Input]) -> list[str]:
    """The names of the stored weights that a value is made of."""
    if not tensors_of(node):
        return []  # a size of a value is made of none
    if node in known:
        return [known[node].name]
    return [name for operand in node.all_input_nodes for name in _stored(operand, known)]
