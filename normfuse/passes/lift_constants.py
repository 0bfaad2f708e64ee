"""Tensors that a graph holds become inputs of it.

Inductor accepts no tensor of a Dynamo graph that Dynamo does not know the origin of, and tracing
turns each literal, like ``torch.tensor(-inf)``, into one.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from normfuse.torch_compat import graph_module

__all__ = ["lift_constants"]


def lift_constants(gm: GraphModule) -> tuple[GraphModule, list[Node], list[torch.Tensor]]:
    """A module over the same graph that holds no tensors, its new placeholders, and what to pass for them."""
    placeholders: dict[str, Node] = {}
    tensors: list[torch.Tensor] = []
    last = [n for n in gm.graph.nodes if n.op == "placeholder"][-1:]
    for node in gm.graph.find_nodes(op="get_attr"):
        held = _tensor(gm, str(node.target))
        if held is None:
            continue
        if node.target not in placeholders:
            with gm.graph.inserting_before(last[0].next if last else next(iter(gm.graph.nodes))):
                made = gm.graph.placeholder(f"constant_{len(tensors)}")
            made.meta = {"val": node.meta.get("val", held)}
            placeholders[str(node.target)] = made
            tensors.append(held)
            last = [made]
        node.replace_all_uses_with(placeholders[str(node.target)])
        gm.graph.erase_node(node)
    emptied = graph_module(gm, gm.graph)
    return emptied, list(placeholders.values()), tensors


def _tensor(gm: GraphModule, name: str) -> torch.Tensor | None:
    value: object = gm
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, torch.Tensor) else None
