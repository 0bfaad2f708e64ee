"""Put channel maps into a graph: on weights as algebra, on activations as one subtraction.

Nodes made on weights are marked in their metadata, so that a later pass can compute them once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from normfuse.analysis.absorb import Kept, Leaf, Plan, Rebuilt
from normfuse.analysis.channel_map import ChannelMap, Diagonal
from normfuse.errors import InvariantError
from normfuse.folding.recipe import FOLD

__all__ = ["Placement", "Substitution"]

#: Who reads, what it reads now, and what it is to read.
Substitution = tuple[Node, Node, Plan]


class Placement:
    """Edits one graph; equal maps of one weight are made once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._folded: dict[Leaf, Node] = {}
        self._erased: set[Node] = set()

    def substitute(self, planned: Sequence[Substitution]) -> None:
        """Let each user read the planned value in place of an operand; a user may be the operand itself.

        Every plan speaks of the graph as it was when the plans were made, so all values are made before
        any reader is changed, and nothing is erased before all readers are.
        """
        made = [(user, operand, self._made_for(user, operand, plan)) for user, operand, plan in planned]
        for user, operand, value in made:
            if user is not operand:
                user.replace_input_with(operand, value)
        for user, operand, value in made:
            if user is operand and value is not user:
                user.replace_all_uses_with(value)
        for _, operand, _ in made:
            self._erase(operand)

    def _made_for(self, user: Node, operand: Node, plan: Plan) -> Node:
        if user is not operand and operand not in user.all_input_nodes:
            raise InvariantError(f"{user.name} does not read {operand.name}, which was to be replaced there")
        with self._graph.inserting_before(user):
            value = self._make(plan)
        value.meta.setdefault("val", operand.meta["val"])
        return value

    def after(self, node: Node, axis: int, mapping: ChannelMap, readers: set[Node] | None) -> Node:
        """Apply a map to an activation, for the given readers or for all."""
        existing = set(node.users) if readers is None else readers
        with self._graph.inserting_before(_behind(node)):
            made = mapping.emit(self._graph, node, axis)
        for reader in existing:
            reader.replace_input_with(node, made)
        return made

    def _make(self, plan: Plan) -> Node:
        if isinstance(plan, Kept):
            return plan.node
        if isinstance(plan, Leaf):
            return self._fold(plan)
        copies = {operand: self._make(deeper) for operand, deeper in plan.operands}
        return self._rebuild(plan, copies)

    def _rebuild(self, plan: Rebuilt, copies: dict[Node, Node]) -> Node:
        made = self._graph.node_copy(plan.node, lambda n: copies.get(n, n))
        made.meta = dict(plan.node.meta)
        return made

    def _fold(self, leaf: Leaf) -> Node:
        """The folded weight, made right behind what it is made of so that every reader can share it."""
        if leaf not in self._folded:
            sources = {leaf.node, *(m.scale for m in leaf.maps if isinstance(m, Diagonal))}
            made = leaf.node
            with self._graph.inserting_before(_behind(self._last(sources))):
                for mapping in leaf.maps:
                    made = mapping.emit(self._graph, made, leaf.axis)
            _mark(made, sources)
            self._folded[leaf] = made
        return self._folded[leaf]

    def _last(self, nodes: set[Node]) -> Node:
        """The one that comes last in the graph."""
        computed = [n for n in nodes if n.op != "placeholder"]
        if len(computed) <= 1:
            return computed[0] if computed else next(iter(nodes))
        ordered: list[Node] = [n for n in self._graph.nodes if n in nodes]
        return ordered[-1]

    def _erase(self, node: Node) -> None:
        """Remove a node and what only it needed."""
        stack = [node]
        while stack:
            current = stack.pop()
            if current.users or current.op == "placeholder" or current in self._erased:
                continue
            inputs = current.all_input_nodes
            self._graph.erase_node(current)
            self._erased.add(current)
            stack.extend(inputs)


def _behind(node: Node) -> Node:
    """The first node after ``node`` and after all placeholders."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following


def _mark(made: Node, sources: set[Node]) -> None:
    stack = [made]
    while stack:
        node = stack.pop()
        if node not in sources and FOLD not in node.meta:
            node.meta[FOLD] = True
            stack.extend(node.all_input_nodes)
