"""What a converted norm rests on: the nodes that discharge its side conditions, the weights that change."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from normfuse.analysis.absorb import Kept, Leaf, Plan, Rebuilt, Redirected
from normfuse.analysis.centring import Decision
from normfuse.analysis.stream import Stream, Value, norm_axis
from normfuse.passes.catalogue import CATALOGUE
from normfuse.passes.work import Work

__all__ = ["evidence"]


def evidence(norm: Node, stream: Stream, decision: Decision, work: Work) -> dict[str, Any]:
    """The beginning of a certificate; measured errors and hashes of weights are added by who has them."""
    rule = CATALOGUE["recentre"]
    start = norm_axis(norm)
    cone = [] if start is None else _cone(start, stream, decision)
    plans = [plan for value in cone for _, plan in decision.plans.get(value, ())]
    writers = [v[0].name for v in cone if v in decision.plans or v == decision.cut]
    readers = sorted({n.name for v in cone if v not in stream.raw for n in stream.norms.get(v, ())})
    weights = sorted({name for plan in plans for name in _sources(plan, work)})
    discharged = (writers, readers, weights)
    return {
        "rule": rule.name,
        "numerics": rule.numerics.value,
        "equation": rule.equation,
        "source": rule.source,
        "centred_explicitly": [] if decision.cut not in cone else [decision.cut[0].name],
        "conditions": [
            {"condition": condition, "nodes": nodes}
            for condition, nodes in zip(rule.conditions, discharged, strict=True)
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


def _sources(plan: Plan, work: Work) -> list[str]:
    """Names of the stored weights that a plan changes or joins."""
    if isinstance(plan, Kept):
        return []
    if isinstance(plan, Redirected):
        return _sources(plan.plan, work)
    if isinstance(plan, Rebuilt):
        return [name for _, deeper in plan.operands for name in _sources(deeper, work)]
    roots = [plan.node] if isinstance(plan, Leaf) else []
    roots += [source for mapping in plan.maps for source in mapping.sources]
    return [name for root in roots for name in _stored(root, work)]


def _stored(node: Node, work: Work) -> list[str]:
    found = work.program.weights.get(node)
    if found is not None:
        return [found.name]
    return [name for operand in node.all_input_nodes for name in _stored(operand, work)]
