"""The norms in the graphs that operators run: listed, so that nobody misses them, and left alone."""

from __future__ import annotations

from normfuse.analysis.weights import WeightValues
from normfuse.ir.effects import Effects
from normfuse.ir.location import module_path, source_line
from normfuse.ir.program import Inner
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.positional import positional
from normfuse.patterns import absorb, find_facts, handwritten_norms, native_norms, stored_norms
from normfuse.report import Refusal, Site

__all__ = ["sites_inside"]

_REMEDIES = {
    "tag_activation_checkpoint": "for inference, switch activation checkpointing off",
}


def sites_inside(inner: Inner) -> list[Site]:
    """One site for each norm of a graph that another one runs, with the reason why it stays."""
    program = inner.program.copied()
    positional(program.gm)
    canonicalize(program.gm)
    graph = program.gm.graph
    facts = find_facts(graph)
    cores = [*native_norms(graph, facts), *handwritten_norms(facts)]
    stored = stored_norms(graph, WeightValues(program, Effects(graph)))
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = [*((core.root, absorb(core)) for core in cores), *((core.root, core) for core in stored)]
    sites: list[Site] = []
    for root, norm in sorted(found, key=lambda one: order[one[0]]):
        site = Site.of(norm.spec, module_path(root), source_line(root), str(root.target))
        site.refuse(_refusal(inner.operator, root.name))
        sites.append(site)
    return sites


def _refusal(operator: str, node: str) -> Refusal:
    return Refusal(
        "inner_graph",
        f"the norm is in a graph that {operator} runs, and such graphs are not rewritten",
        node,
        _REMEDIES.get(operator, "move the norm out of it"),
    )
