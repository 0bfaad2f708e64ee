"""What weights did not meet that a graph was called with, for the next time that graph is compiled.

Layers of one class, and models of one class, share what Dynamo compiles. Where the rewrite for the weights
of one is not right for those of another, the next one has to be right for both, or the two would be
compiled in turns for ever. A doubt lasts as long as the weight that gave rise to it.
"""

from __future__ import annotations

import weakref

import torch
from torch.fx import GraphModule

from normfuse.folding import BrokenPremiseError, Fact

__all__ = ["doubt", "doubted"]

_doubts: dict[str, list[tuple[weakref.ref[torch.Tensor], frozenset[Fact]]]] = {}


def doubt(gm: GraphModule, broken: BrokenPremiseError) -> None:
    """Remember what did not hold for the weights of this call of a Dynamo graph."""
    name = _name(gm)
    kept = [one for one in _doubts.get(name, []) if one[0]() is not None]
    _doubts[name] = [*kept, (weakref.ref(broken.weight), broken.facts)]


def doubted(gm: GraphModule) -> frozenset[Fact]:
    """What did not hold for weights that still live."""
    if not _doubts:
        return frozenset()
    for name in [n for n, doubts in _doubts.items() if all(weight() is None for weight, _ in doubts)]:
        del _doubts[name]
    return frozenset(fact for _, facts in _doubts.get(_name(gm), []) for fact in facts)


def _name(gm: GraphModule) -> str:
    """The same for graphs that Dynamo makes of the same code for the same types of inputs."""
    return "\n".join(f"{n.op} {n.target} {n.args} {n.kwargs} {_facts(n.meta)}" for n in gm.graph.nodes)


def _facts(meta: dict[str, object]) -> str:
    value = meta.get("example_value")
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
