"""What weights did not meet that a graph was called with, for the next time that graph is compiled.

Layers of one class, and models of one class, share what Dynamo compiles. Where the rewrite for the weights
of one is not right for those of another, the next one has to be right for both, or the two would be
compiled in turns for ever. A doubt lasts as long as the weight that gave rise to it, and at least until the
graph is compiled again.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from normfuse.folding import BrokenPremiseError, Fact

__all__ = ["doubt", "doubted", "graph_name"]


@dataclass
class _Doubt:
    weight: weakref.ref[torch.Tensor]
    facts: frozenset[Fact]
    is_new: bool = True

    @property
    def lasts(self) -> bool:
        return self.is_new or self.weight() is not None


_doubts: dict[str, list[_Doubt]] = {}


def doubt(gm: GraphModule, broken: BrokenPremiseError) -> None:
    """Remember what did not hold for the weights of this call of a Dynamo graph."""
    name = graph_name(gm)
    kept = [one for one in _doubts.get(name, []) if one.lasts]
    _doubts[name] = [*kept, _Doubt(weakref.ref(broken.weight), broken.facts)]


def doubted(gm: GraphModule) -> frozenset[Fact]:
    """What did not hold for weights that still live, or since the graph was compiled last."""
    if not _doubts:
        return frozenset()
    for name in [n for n, found in _doubts.items() if not any(one.lasts for one in found)]:
        del _doubts[name]
    found = [one for one in _doubts.get(graph_name(gm), []) if one.lasts]
    for one in found:
        one.is_new = False
    return frozenset(fact for one in found for fact in one.facts)


def graph_name(gm: GraphModule) -> str:
    """The same for graphs that Dynamo makes of the same code for the same types of inputs."""
    return "\n".join(f"{n.op} {n.target} {n.args} {n.kwargs} {_facts(n.meta)}" for n in gm.graph.nodes)


def _facts(meta: dict[str, object]) -> str:
    value = meta.get("example_value")
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
