"""A graph with some of its inputs as constants of it, compiled by Inductor with freezing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.torch_compat import graph_module

__all__ = ["let_go", "with_constants"]


def with_constants(module: GraphModule, values: Mapping[int, torch.Tensor]) -> tuple[GraphModule, list[int]]:
    """A copy of ``module`` that holds the inputs at some places, and the places of those that it takes still.

    Inputs that nothing reads are gone, unless they are sizes. The tensors share memory with those given, as
    other objects, so that holding them keeps no parameter alive.
    """
    graph, nodes = Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(module.graph, nodes))
    made = graph_module(module, graph)
    kept: list[int] = []
    for place, original in enumerate([n for n in module.graph.nodes if n.op == "placeholder"]):
        node = nodes[original]
        if place in values:
            _hold(made, node, f"{_PREFIX}{place}", values[place].detach())
        elif node.users or not _is_tensor(node):
            kept.append(place)
        else:
            graph.erase_node(node)
    return made, kept


def let_go(made: GraphModule) -> None:
    """Hold the constants no more, once compiled code holds those that it needs."""
    for name in [n for n, _ in made.named_buffers(recurse=False) if n.startswith(_PREFIX)]:
        setattr(made, name, torch.empty(0))


_PREFIX = "frozen_"


def _hold(made: GraphModule, node: Node, name: str, value: torch.Tensor) -> None:
    if node.users:
        made.register_buffer(name, value)
        with node.graph.inserting_before(node):
            held = node.graph.get_attr(name)
        held.meta = {k: v for k, v in node.meta.items() if k in _META}
        node.replace_all_uses_with(held)
    node.graph.erase_node(node)


_META = ("val", "example_value")


def _is_tensor(node: Node) -> bool:
    return any(isinstance(node.meta.get(key), torch.Tensor) for key in _META)
