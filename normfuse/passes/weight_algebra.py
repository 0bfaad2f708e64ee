"""Algebra on the weights of a graph: values that are made of weights alone, each once.

What is made is marked in the metadata of its nodes, so that a later pass can compute it once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.fx import Graph, Node

from normfuse.analysis.channel_map import Diagonal, dtype_of
from normfuse.analysis.plan import Constant, Leaf, Maps
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import shape_of
from normfuse.passes.runs import as_it_lay, as_runs

__all__ = ["WeightAlgebra", "behind_placeholders", "sources_of"]


class WeightAlgebra:
    """Makes weights of the weights of one graph; ``made`` are all nodes that it made."""

    def __init__(self, graph: Graph) -> None:
        self.made: list[Node] = []
        self._graph = graph
        self._folded: dict[Hashable, Node] = {}
        self._erased: set[Node] = set()

    def fold(self, leaf: Leaf, before: Node) -> Node:
        """The folded weight, made right behind what it is made of so that every reader can share it."""
        if leaf not in self._folded:
            with self._inserting({leaf.node, *sources_of(leaf.maps)}, before) as sources:
                made = as_runs(self._graph, leaf.node, leaf.groups)
                for mapping in leaf.maps:
                    made = mapping.emit(self._graph, made, leaf.axis)
                made = as_it_lay(self._graph, made, leaf)
            self._note(leaf, made, sources)
        self._raise(self._folded[leaf], before)
        return self._folded[leaf]

    def _constant(self, plan: Constant, before: Node) -> Node:
        """The maps of zero, in the dtype of the weight beside which it stands."""
        if plan not in self._folded:
            with self._inserting(set(sources_of(plan.maps)), before) as sources:
                width = (shape_of(plan.like) or ())[plan.axis] * plan.groups
                made = self._of_zero(plan.maps, width, dtype_of(plan.like))
            self._note(plan, made, sources)
        self._raise(self._folded[plan], before)
        return self._folded[plan]

    def times(self, weight: Node, number: float, before: Node) -> Node:
        """A weight value times a number."""
        return self.fold(Leaf(weight, 0, (Diagonal(number),)), before)

    def made_of(self, sources: set[Node], before: Node, emit: Callable[[Graph], Node]) -> Node:
        """What ``emit`` makes of weight values."""
        with self._inserting(sources, before):
            made = emit(self._graph)
        self._mark(made, sources)
        return made

    def discard(self, made: Iterable[Node]) -> None:
        """Remove folded weights that nothing reads after all."""
        for node in made:
            self.erase(node)
        self.made = [node for node in self.made if node not in self._erased]

    def is_erased(self, node: Node) -> bool:
        """Whether a node is no longer in the graph, since what read it reads something else."""
        return node in self._erased

    def erase(self, node: Node) -> None:
        """Remove a node and what only it needed."""
        stack = [node]
        while stack:
            current = stack.pop()
            if current.users or current.op == "placeholder" or current in self._erased:
                continue
            inputs = current.all_input_nodes
            self._graph.erase_node(current)
            self._erased.add(current)
            self._folded = {plan: made for plan, made in self._folded.items() if made is not current}
            stack.extend(inputs)

    def _of_zero(self, maps: Maps, width: int, dtype: torch.dtype) -> Node:
        made = call(self._graph, aten.new_zeros.default, sources_of(maps)[0], [width])
        made = cast(self._graph, made, dtype)
        for mapping in maps:
            made = mapping.emit(self._graph, made, 0)
        return made

    @contextmanager
    def _inserting(self, sources: set[Node], before: Node) -> Iterator[set[Node]]:
        for source in sorted(sources):  # in the graph's order: equal graphs are rewritten alike
            self._raise(source, before)
        with self._graph.inserting_before(behind_placeholders(max(sources))):
            yield sources

    def _note(self, plan: Hashable, made: Node, sources: set[Node]) -> None:
        self._mark(made, sources)
        self._folded[plan] = made

    def _mark(self, made: Node, sources: set[Node]) -> None:
        stack = [made]
        while stack:
            node = stack.pop()
            if node not in sources and FOLD not in node.meta:
                node.meta[FOLD] = True
                self.made.append(node)
                stack.extend(node.all_input_nodes)

    def _raise(self, node: Node, before: Node) -> None:
        """Move a weight value, and what it is made of, ahead of ``before``."""
        if node.op == "placeholder" or node < before:
            return
        for operand in node.all_input_nodes:
            self._raise(operand, before)
        before.prepend(node)


def sources_of(maps: Maps) -> list[Node]:
    """The values that maps are made of."""
    return [node for mapping in maps for node in mapping.sources]


def behind_placeholders(node: Node) -> Node:
    """The first node after ``node`` and after all placeholders."""
    following = node.next
    while following.op == "placeholder":
        following = following.next
    return following
