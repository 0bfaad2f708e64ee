"""The memory that weight values are made of, and who reads it under any name."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch.fx import Node

from normfuse.ir.effects import aliased_by
from normfuse.ir.program import Input
from normfuse.ir.sizes import tensor_of
from normfuse.ir.span import Span, shares_memory

__all__ = ["WeightMemory", "memory_of"]


class WeightMemory:
    """Of the inputs of a graph and all that is made of them, ``known``; folded weights have their own."""

    def __init__(self, inputs: Mapping[Node, Input], known: Set[Node], folded: Set[Node]) -> None:
        self._inputs, self._known, self._folded = inputs, known, folded
        self._spanned: dict[Node, set[Span]] = {}
        self._by_memory: dict[int | None, list[Node]] = {}

    def forget_places(self) -> None:
        """Look again which values lie in which memory: more weights are folded."""
        self._by_memory = {}

    def is_shared(self, node: Node) -> bool:
        """Whether what a weight value is made of is read by more than one operator, under any name."""
        memories = {span.memory for span in self._spans(node)}
        unknown = node not in self._folded and (not memories or None in memories)
        return unknown or len(self.readers_of(node)) > 1

    def readers_of(self, node: Node) -> list[Node]:
        """All operators on data that read a weight value, or whatever else is made of the same memory.

        Parts of one weight that do not overlap are weights of their own, as those of a packed projection, and
        so are folded weights, which are copies.
        """
        own = self._spans(node)
        if not self._by_memory:
            self._sort_by_memory()
        seen = {node for span in own for node in self._by_memory.get(span.memory, ())}
        stack, found = list(seen), set[Node]()
        while stack:
            value = stack.pop()
            overlaps = not own or any(a.overlaps(b) for a in self._spans(value) for b in own)
            for user in value.users:
                if user in self._known:
                    stack.extend({user} - seen - self._folded)
                    seen.add(user)
                elif overlaps:
                    found.add(user)
        return sorted(found)

    def _sort_by_memory(self) -> None:
        """Note which inputs and folded weights lie in which memory."""
        for found in self._inputs.values():
            self._by_memory.setdefault(memory_of(found), []).append(found.node)
        for node in self._folded:
            for memory in {span.memory for span in self._spans(node)}:
                self._by_memory.setdefault(memory, []).append(node)

    def _spans(self, node: Node) -> set[Span]:
        """The memory that a weight value is made of."""
        if node not in self._spanned:
            self._spanned[node] = self._own_spans(node)
        return self._spanned[node]

    def _own_spans(self, node: Node) -> set[Span]:
        if node in self._folded:
            return {Span(id(self._whole(node)))}
        if node in self._inputs:
            return {Span.of(memory_of(self._inputs[node]), self._inputs[node].value)}
        whole, value = _viewed(node), tensor_of(node)
        base = tensor_of(whole)
        if (
            whole is not None
            and whole in self._inputs
            and base is not None
            and value is not None
            and shares_memory(base, value)
        ):
            start = self._inputs[whole].value.storage_offset() - base.storage_offset()
            return {Span.of(memory_of(self._inputs[whole]), value, start)}
        return set().union(*(self._spans(operand) for operand in node.all_input_nodes))

    def _whole(self, node: Node) -> Node:
        """The folded weight that the algebra at a node is a part of."""
        while above := next((user for user in node.users if user in self._folded), None):
            node = above
        return node


def _viewed(node: Node) -> Node | None:
    """The value that a node is a view of, through any number of views."""
    while bases := aliased_by(node):
        if len(bases) > 1:
            return None
        node = bases[0]
    return node


def memory_of(found: Input | None) -> int | None:
    """What identifies the memory of an input; None where that is hard to say."""
    if found is None or found.value.layout != torch.strided:
        return None
    return int(found.value.untyped_storage()._cdata)
