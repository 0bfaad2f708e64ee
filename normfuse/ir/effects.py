"""Which values share memory, and which memory the graph writes to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import mutated_arguments
from normfuse.torch_compat import fake_storage_id

__all__ = ["Effects"]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


class Effects:
    """Memory written by a graph, judged by the storages of its fake values."""

    def __init__(self, graph: Graph) -> None:
        self._written: set[int] = set()
        for node in graph.nodes:
            for argument in mutated_arguments(node):
                self._written |= self.storages(argument)

    @staticmethod
    def storages(node: Node) -> set[int]:
        """Identities of the memory behind a node's value."""
        ids = (fake_storage_id(t) for t in _tensors(node.meta.get("val")))
        return {i for i in ids if i is not None}

    def is_written(self, node: Node) -> bool:
        """Whether anything in the graph writes to memory that ``node`` reads or returns."""
        return bool(self._written) and not self._written.isdisjoint(self.storages(node))
