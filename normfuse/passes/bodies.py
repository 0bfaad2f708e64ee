"""The operators that lifted norms were spelled with, as graphs; norms that are spelled alike share one.

A model repeats its norms in every layer, and copying nodes is most of the work of lifting. Nothing
may change a body: a rewrite gives its region a new one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["Bodies", "are_alike"]


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


def are_alike(one: Graph, other: Graph) -> bool:
    """Whether two bodies run the same operators on operands that are given in the same order."""
    return one is other or ((key := _calls(*_parts(one))) == _calls(*_parts(other)) and key is not None)


def _parts(body: Graph) -> tuple[list[Node], list[Node], Node]:
    """The operands, the operators and the result."""
    operands = list(body.find_nodes(op="placeholder"))
    interior = [n for n in body.nodes if n.op not in ("placeholder", "output")]
    (root,) = body.output_node().all_input_nodes
    return operands, interior, root


def _structure(operands: Sequence[Node], interior: Sequence[Node], root: Node) -> Hashable | None:
    """What two bodies must have in common to be the same graph; None where that is hard to say."""
    calls = _calls(operands, interior, root)
    try:
        return None if calls is None else (tuple(map(_kind, operands)), calls)
    except TypeError:
        return None


def _calls(operands: Sequence[Node], interior: Sequence[Node], root: Node) -> Hashable | None:
    """The operators, and which of the operands and of the others each reads."""
    place = {node: ("node", i) for i, node in enumerate((*operands, *interior))}
    try:
        calls = tuple((n.target, _frozen(n.args, place), _frozen(n.kwargs, place)) for n in interior)
        key = (len(operands), calls, place[root])
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
