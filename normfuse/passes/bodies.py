"""The operators that lifted norms were spelled with, as graphs; norms that are spelled alike share one.

A model repeats its norms in every layer, and copying nodes is most of the work of lifting. Nothing
may change a body: a rewrite gives its region a new one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["Bodies"]


class Bodies:
    """The bodies of one graph's norms."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Graph] = {}

    def of(self, operands: Sequence[Node], interior: Sequence[Node], root: Node) -> Graph:
        """A graph with one input for each operand that runs ``interior`` and returns ``root``."""
        key = _structure(operands, interior, root)
        if key is None:
            return _copied(operands, interior, root)
        if key not in self._known:
            self._known[key] = _copied(operands, interior, root)
        return self._known[key]


def _structure(operands: Sequence[Node], interior: Sequence[Node], root: Node) -> Hashable | None:
    """What two bodies must have in common to be the same graph; None where that is hard to say."""
    place = {node: ("node", i) for i, node in enumerate((*operands, *interior))}
    try:
        calls = tuple((n.target, _frozen(n.args, place), _frozen(n.kwargs, place)) for n in interior)
        key = (len(operands), tuple(map(_kind, operands)), calls, place[root])
        hash(key)
    except (TypeError, KeyError):
        return None
    return key


def _frozen(value: Any, place: dict[Node, tuple[str, int]]) -> Hashable:
    """Arguments as tuples, each number beside its type: ``1``, ``1.0`` and ``True`` are equal."""
    if isinstance(value, Node):
        return place[value]
    if isinstance(value, (list, tuple)):
        return ("list", *[_frozen(v, place) for v in value])
    if isinstance(value, dict):
        return ("dict", *[(k, _frozen(v, place)) for k, v in value.items()])
    return (type(value), value)


def _kind(operand: Node) -> Hashable:
    value = operand.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{operand.name} is not a tensor")
    sizes = (*value.shape, *value.stride())
    if not all(isinstance(size, int) for size in sizes):
        raise TypeError(f"{operand.name} has symbolic sizes")
    return (sizes, value.dtype, value.device, type(value))


def _copied(operands: Sequence[Node], interior: Sequence[Node], root: Node) -> Graph:
    graph = Graph()
    copies: dict[Node, Node] = {}
    for operand in operands:
        if operand in copies:
            graph.placeholder(f"{operand.name}_again")
        else:
            copies[operand] = graph.placeholder(operand.name)
            copies[operand].meta = dict(operand.meta)
    for node in interior:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[root])
    return graph
