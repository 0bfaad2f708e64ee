"""Which channels of which operand an operator selects or joins."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.analysis.ranges import Piece, pieces_of, read_apart
from normfuse.analysis.stream import norm_axis
from normfuse.ir import norms_in
from tests.patterns.capturing import lifted

AXIS = 2


def graph_of(function: Callable[..., Any]) -> list[Node]:
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    graph = make_fx(function, tracing_mode="fake")(x, y).graph
    graph.eliminate_dead_code()
    return list(graph.nodes)


def last_call(nodes: list[Node]) -> Node:
    return [n for n in nodes if n.op == "call_function"][-1]


#: What is computed of x (8 channels) and y (5), and (operand, inner, outer, length) of each piece.
TAKEN: dict[str, tuple[Callable[..., Any], list[tuple[str, int, int, int]]]] = {
    "slice": (lambda x, y: x[:, :, 2:6], [("x_1", 2, 0, 4)]),
    "slice from the end": (lambda x, y: x[:, :, -3:], [("x_1", 5, 0, 3)]),
    "slice from before the beginning": (lambda x, y: torch.ops.aten.slice(x, 2, -20, 3), [("x_1", 0, 0, 3)]),
    "slice by a negative axis": (lambda x, y: torch.ops.aten.slice(x, -1, 1, 3), [("x_1", 1, 0, 2)]),
    "join": (lambda x, y: torch.cat([x, y], 2), [("x_1", 0, 0, 8), ("y_1", 0, 8, 5)]),
    "join by a negative axis": (lambda x, y: torch.cat([x, y], -1), [("x_1", 0, 0, 8), ("y_1", 0, 8, 5)]),
    "part": (lambda x, y: torch.split(x, [3, 4, 1], 2)[1], [("x_1", 3, 0, 4)]),
    "last part": (lambda x, y: torch.split(x, 3, 2)[-1], [("x_1", 6, 0, 2)]),
    "slice of another axis": (lambda x, y: torch.ops.aten.slice(x, 1, 0, 2), []),
    "slice with steps": (lambda x, y: torch.ops.aten.slice(x, 2, 0, 8, 2), []),
    "join with an empty vector": (lambda x, y: torch.cat([x.new_empty(0), x], 2), []),
    "join on another axis": (lambda x, y: torch.cat([x, x + 1], 1), []),
    "join with itself": (lambda x, y: torch.cat([x, x], 2), []),
    "part of another axis": (lambda x, y: torch.split(x, 1, 0)[1], []),
    "no such operator": (lambda x, y: x + 1, []),
    "part of what is no split": (lambda x, y: torch.max(x, 2)[0], []),
}


@pytest.mark.parametrize("name", TAKEN)
def test_pieces(name: str) -> None:
    function, expected = TAKEN[name]
    node = last_call(graph_of(function))
    found = [(p.operand.name, p.inner, p.outer, p.length) for p in pieces_of(node, AXIS)]
    assert found == expected


READ: dict[str, tuple[Callable[..., Any], bool]] = {
    "nothing else": (lambda x, y: x[:, :, :3], True),
    "the rest": (lambda x, y: x[:, :, 3:] + x[:, :, :5] * 0, False),
    "other channels": (lambda x, y: (x[:, :, 3:], x[:, :, :3]), True),
    "some of the same": (lambda x, y: (x[:, :, 2:], x[:, :, :3]), False),
    "all of it": (lambda x, y: (x + 1, x[:, :, :3]), False),
    "parts of one split": (lambda x, y: (torch.split(x, [5, 3], 2)[0], x[:, :, 5:]), True),
    "a split and a slice across": (lambda x, y: (torch.split(x, [5, 3], 2)[0], x[:, :, 4:]), False),
    "another axis": (lambda x, y: (x[:, :2], x[:, :, :3]), False),
}


@pytest.mark.parametrize("name", READ)
def test_what_else_is_read(name: str) -> None:
    """Asked of the last operator that selects channels of ``x``."""
    function, expected = READ[name]
    nodes = graph_of(function)
    whole = nodes[0]
    node = [n for n in nodes if pieces_of(n, AXIS) and pieces_of(n, AXIS)[0].operand is whole][-1]
    (piece,) = pieces_of(node, AXIS)
    assert isinstance(piece, Piece)
    assert read_apart(whole, AXIS, node, piece) is expected


def test_a_part_whose_number_is_no_number() -> None:
    node = last_call(graph_of(lambda x, y: torch.split(x, 4, 2)[1]))
    assert node.target is operator.getitem
    node.args = (node.args[0], node)
    assert pieces_of(node, AXIS) == ()


@pytest.mark.parametrize(("shape", "expected"), [((8,), 2), ((3, 8), None)])
def test_a_stream_runs_along_one_axis(shape: tuple[int, ...], expected: int | None) -> None:
    work = lifted(lambda x: torch.nn.functional.layer_norm(x, shape), (torch.randn(2, 3, 8),))
    ((node, _),) = norms_in(work.program.gm)
    found = norm_axis(node)
    assert (None if found is None else found[1]) == expected
