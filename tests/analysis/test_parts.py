"""Which values hold a part of another's channels, against the operators: a map of the part, in the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from normfuse.analysis.parts import Part, part_of
from tests.analysis.dense import Dense, applied, matrix

#: Heads, channels of each, and all channels of the whole.
H, D, F = 4, 3, 36
Function = Callable[[torch.Tensor], Any]

#: What is computed of the whole, and the axis of its channels.
PARTS: dict[str, tuple[Function, int]] = {
    "heads": (lambda x: x.view(2, 5, 3 * H, D), 3),
    "heads that are moved": (lambda x: x.view(2, 5, 3 * H, D).transpose(1, 2).contiguous(), 3),
    "tokens joined": (lambda x: x.reshape(10, 3 * H, D), 2),
    "an axis of size one": (lambda x: x.reshape(2, 5, 1, 3 * H, 1, D), 5),
    "one of three in each head": (lambda x: x.view(2, 5, H, 3, D)[..., 1, :], 3),
    "one of three in front of the heads": (
        lambda x: x.reshape(2, 5, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)[2], 3,
    ),
    "heads of a part of a split": (lambda x: x.split([12, 6, 18], -1)[1].reshape(2, 5, 2, D), 3),
    "a part of a split": (lambda x: x.chunk(3, -1)[2], 2),
    "channels outside of the heads": (lambda x: x.view(2, 5, D, 12), 2),
    "some heads": (lambda x: x.view(2, 5, 12, D)[:, :, 1:4], 3),
    "some channels of each head": (lambda x: x.view(2, 5, 12, D)[..., 1:3], 3),
    "a range of a range": (lambda x: x[..., 3:27][..., 6:15].view(2, 5, 3, D), 3),
    "two axes of heads": (lambda x: x.view(2, 5, 2, 6, D)[:, :, 1, 2:5], 3),
}  # fmt: skip
NO_PARTS: dict[str, tuple[Function, int]] = {
    "the whole": (lambda x: x.transpose(0, 1), 2),
    "one token": (lambda x: x[:, 0], 1),
    "a token's heads": (lambda x: x[:, 0].view(2, 12, D), 2),
    "every other channel": (lambda x: x[..., ::2], 2),
    "one of two inside the channels": (lambda x: x.view(2, 5, 12, D)[..., 0], 2),
    "channels joined with tokens": (lambda x: x.reshape(2, 5 * F), 1),
    "something computed": (lambda x: x.view(2, 5, 12, D) * 2, 3),
}


def graph_of(function: Function) -> list[Node]:
    gm = make_fx(function, pre_dispatch=True, tracing_mode="fake")(torch.randn(2, 5, F, dtype=torch.float64))
    gm.graph.eliminate_dead_code()
    return list(gm.graph.nodes)


def found_in(function: Function, axis: int) -> tuple[Part | None, Node]:
    nodes = graph_of(function)
    return part_of(nodes[-2], axis), nodes[0]


def mapped(part: Part, whole: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The whole behind the lifted map of a dense matrix."""
    graph = Graph()
    x, m = graph.placeholder("x"), graph.placeholder("m")
    x.meta["val"], m.meta["val"] = whole, made
    graph.output(part.lifted(Dense(m)).emit(graph, x, part.axis))
    result: torch.Tensor = GraphModule({}, graph)(whole, made)
    return result


@pytest.mark.parametrize("name", PARTS)
def test_a_map_of_the_part_is_one_of_the_whole(name: str) -> None:
    function, axis = PARTS[name]
    part, x = found_in(function, axis)
    assert part is not None
    assert (part.whole, part.axis) == (x, 2)
    whole = torch.randn(2, 5, F, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = matrix(*[function(whole).shape[axis]] * 2)
    changed = mapped(part, whole, made)
    torch.testing.assert_close(
        function(changed), applied(function(whole), made, axis), rtol=1e-12, atol=1e-12
    )
    marked = whole.clone().requires_grad_()
    function(marked).sum().backward()
    assert marked.grad is not None
    assert torch.equal(changed[marked.grad == 0], whole[marked.grad == 0])


@pytest.mark.parametrize("axes", [(12, D), (D, 12)])
def test_a_map_may_change_how_many_channels_there_are(axes: tuple[int, int]) -> None:
    axis = 2 + axes.index(D)
    part, _ = found_in(lambda x: x.view(2, 5, *axes), axis)
    assert part is not None
    whole, made = torch.randn(2, 5, F, dtype=torch.float64), matrix(7, D)
    sizes = [7 if size == D else size for size in axes]
    wanted = applied(whole.view(2, 5, *axes), made, axis)
    torch.testing.assert_close(mapped(part, whole, made).view(2, 5, *sizes), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NO_PARTS)
def test_no_part(name: str) -> None:
    part, _ = found_in(*NO_PARTS[name])
    assert part is None


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.view(2, 5, H, 3, D)


#: What is returned, and whether the part that comes last is read apart from all else.
READ: dict[str, tuple[Function, bool]] = {
    "nothing else": (lambda x: heads(x)[..., 0, :], True),
    "the others": (lambda x: (heads(x)[..., 1, :] + 1, heads(x)[..., 2, :].sum(), heads(x)[..., 0, :]), True),
    "the same by another view": (lambda x: (heads(x)[..., 0, :] + 1, heads(x)[..., 0, :]), False),
    "all": (lambda x: (x + 1, heads(x)[..., 0, :]), False),
    "all, in heads": (lambda x: (heads(x) + 1, heads(x)[..., 0, :]), False),
    "others by ranges": (lambda x: (x[..., 12:] + 1, x[..., :12].reshape(2, 5, H, D)), True),
    "some by ranges": (lambda x: (x[..., 11:] + 1, x[..., :12].reshape(2, 5, H, D)), False),
    "a split of which some are read": (lambda x: (x.split(12, -1)[1] + 1, x.split(12, -1)[0]), True),
    "every other channel": (lambda x: (x[..., 1::2] + 1, x[..., :1]), False),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_else_reads_the_whole(name: str) -> None:
    function, expected = READ[name]
    nodes = graph_of(function)
    node = nodes[-1].all_input_nodes[-1]
    part = part_of(node, node.meta["val"].dim() - 1)
    assert part is not None
    assert part.is_read_apart(node) is expected
