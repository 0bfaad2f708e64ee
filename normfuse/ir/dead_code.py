"""Removing what nobody reads, in one graph.

PyTorch's own goes on to the graphs inside of a graph, such as those of ``torch.autograd.Function`` and of
checkpointed regions, without what it was told about effects, and removes methods that write from them.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.effects import is_effectful

__all__ = ["drop_assertions", "drop_unused"]


def drop_unused(graph: Graph) -> None:
    """Erase nodes that nobody reads and that have no effect; graphs inside stay as they are."""
    for node in reversed(graph.nodes):
        if not node.users and node.op != "placeholder" and not is_effectful(node):
            graph.erase_node(node)


def drop_assertions(value: Node) -> None:
    """Erase what looks at the type of a value in every call."""
    for user in list(value.users):
        if is_call(user, aten._assert_tensor_metadata.default):
            user.graph.erase_node(user)
