"""Weights behind dense maps that change the number of channels: the order and the side of every matrix."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

from normfuse.analysis.contraction import reading
from normfuse.analysis.forward import push
from normfuse.analysis.spread_map import joined_axis
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import set_arguments
from normfuse.ir.effects import Effects
from normfuse.passes.place import Placement
from normfuse.report import Refusal
from tests.analysis.dense import Dense, applied, matrix
from tests.analysis.dense_networks import INNER, Network
from tests.analysis.table_cases import LINEAR, case
from tests.analysis.test_operator_table import traced
from tests.patterns.capturing import program_of

aten = torch.ops.aten
#: Products of a few dozen terms of size one, in float64.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def pushed(function, value, weights, axis, matrices, shift):
    """``function(value, *weights)`` before and after maps of its first argument go into what reads it.

    ``matrices`` are given innermost first; the last map has ``shift``.
    """
    given = [*weights, *matrices, *([] if shift is None else [shift])]
    program = program_of(lambda x, *rest: function(x, *rest[: len(weights)]), (value, *given), len(given))
    graph = program.gm.graph
    x, *rest = (n for n in graph.nodes if n.op == "placeholder")
    nodes = rest[len(weights) : len(weights) + len(matrices)]
    last = rest[-1] if shift is not None else None
    maps = tuple(Dense(n, last if n is nodes[-1] else None) for n in nodes)
    found = push(x, axis, maps, WeightValues(program, Effects(graph)))
    if isinstance(found, Refusal):
        return found
    placement = Placement(graph)
    for read in found.reads:
        set_arguments(read.node, placement.behind(read))
    graph.lint()
    return GraphModule({}, graph), given


def check(function, value, weights, axis, matrices, shift=None):
    made = pushed(function, value, weights, axis, matrices, shift)
    assert not isinstance(made, Refusal), made
    gm, given = made
    sizes = list(value.shape)
    sizes[axis] = matrices[0].shape[1]
    source = torch.randn(sizes, generator=torch.Generator().manual_seed(5), dtype=value.dtype)
    mapped = source
    for one in matrices:
        mapped = applied(mapped, one, axis, shift if one is matrices[-1] else None)
    assert mapped.shape == value.shape
    torch.testing.assert_close(gm(source, *given), function(mapped, *weights), **CLOSE)


def test_a_reader_takes_the_transpose():
    check(torch.nn.functional.linear, real(2, 3, 4), [real(5, 4)], 2, [matrix(4, 6)])


def test_maps_that_do_not_commute_reach_a_reader_in_reverse():
    check(torch.nn.functional.linear, real(2, 4), [real(5, 4)], 1, [matrix(4, 4), matrix(4, 4, 1)])
    check(torch.nn.functional.linear, real(2, 4), [real(5, 4)], 1, [matrix(3, 7), matrix(4, 3)])


def test_the_shift_is_what_the_maps_make_of_zero():
    check(
        torch.nn.functional.linear, real(2, 4), [real(5, 4), real(5)], 1,
        [matrix(3, 7), matrix(4, 3)], real(4),
    )  # fmt: skip


@pytest.mark.parametrize("shift", [None, real(4)])
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 4), 2), ((2, 4, 5), 1), ((2, 3, 4, 5), 2)])
def test_channels_that_a_reshape_joins_take_the_maps_in_every_run(shape, axis, shift):
    """Square ones: the sizes of the reshape stay."""
    width = torch.Size(shape[1:]).numel()
    check(
        lambda x, *rest: torch.nn.functional.linear(x.flatten(1), *rest),
        real(*shape), [real(5, width), real(5)], axis, [matrix(4, 4), matrix(4, 4, 1)], shift,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "axis", "joined"),
    [
        ((2, 3, 4), (2, 12), 2, (1, 3, 1)),
        ((2, 3, 4), (2, 12), 1, (1, 1, 4)),
        ((2, 3, 4, 5), (2, 60), 2, (1, 3, 5)),
        ((2, 3, 4, 5), (6, 20), 3, (1, 4, 1)),
        ((2, 3, 4), (4, 6), 2, None),
        ((2, 3, 4), (2, 4, 3), 2, None),
    ],
)
def test_the_place_of_channels_that_are_joined_with_others(before, after, axis, joined):
    assert joined_axis(before, after, axis) == joined


def test_a_grouped_reader_takes_no_matrix():
    def run(x, weight):
        return torch.nn.functional.conv1d(x, weight, groups=2)

    found = pushed(run, real(2, 4, 3), [real(6, 2, 1)], 1, [matrix(4, 4)], None)
    assert found.code == "grouped_weight"


def read(call, position: int, axis: int, shifts: bool) -> bool | str:
    """Whether the operand at a position is read along an axis, with the code of the refusal if one comes.

    What the changed graph makes of other values is compared with what the operator makes of their maps.
    """
    network = Network(call, {position})
    value = network.operands[position]
    found = reading(network.node, value, axis)
    if found is None:
        return False
    maps = network.maps(value.meta["val"].shape[axis], found.needs, shifts, reads=True)
    made = push(value, axis, maps, network.weights())
    if isinstance(made, Refusal):
        return made.code
    placement = Placement(network.node.graph)
    for one in made.reads:
        set_arguments(one.node, placement.behind(one))
    source = network.tensors[value]
    if isinstance(maps[0], Dense):
        sizes = [INNER if i == axis else size for i, size in enumerate(source.shape)]
        source = torch.randn(sizes, generator=torch.Generator().manual_seed(5)).to(source.dtype)
    wanted = network.original({value: network.mapped(source, maps, axis)})
    tolerance = 1e-3 if source.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(network.run({value: source}), wanted, rtol=tolerance, atol=tolerance)
    return True


def every_read(call, shifts: bool) -> dict[tuple[int, int], bool | str]:
    _, tensors = traced(call)
    places = [(i, a) for i, t in enumerate(tensors.values()) if t.is_floating_point() for a in range(t.dim())]
    return {place: made for place in places if (made := read(call, *place, shifts))}


@pytest.mark.parametrize("call", LINEAR, ids=str)
def test_what_an_operator_reads_may_be_any_maps(call):
    every_read(call, shifts=False)
    every_read(call, shifts=True)


E, I, O = 3, 4, 6  # noqa: E741
TOKENS, EXPERTS = real(E, 5, I), real(E, I, O)
ROWS, MATRICES = real(5, I).float(), real(2, I, 8).float()
BOTH = {(0, 1): "no_bias", (1, 1): "no_bias"}
#: Calls, with the operand and axis of each thing that they read, and what becomes of a shift.
READS = [
    (case(aten.linear.default, real(2, I), real(O, I), real(O)), {(0, 1): True, (1, 1): "no_bias"}),
    (case(aten.linear.default, real(2, I), real(O, I)), {(0, 1): True, (1, 1): "no_bias"}),
    (case(aten.linear.default, real(2, I), real(I)), {(0, 1): "no_bias", (1, 0): "no_bias"}),
    (case(aten.mm.default, real(2, I), real(I, O)), {(0, 1): "no_bias", (1, 0): "no_bias"}),
    (case(aten.mv.default, real(O, I), real(I)), {(0, 1): "no_bias", (1, 0): "no_bias"}),
    (case(aten.addmm.default, real(O), real(2, I), real(I, O)), {(1, 1): True, (2, 0): True}),
    (case(aten.addmm.default, real(2, O), real(2, I), real(I, O)), {(1, 1): True, (2, 0): True}),
    (
        case(aten.addmm.default, real(O), real(2, I), real(I, O), beta=2),
        {(1, 1): "no_bias", (2, 0): "no_bias"},
    ),
    (
        case(aten.addmm.default, real(O), real(2, I), real(I, O), alpha=2),
        {(1, 1): "no_bias", (2, 0): "no_bias"},
    ),
    (case(aten.addmv.default, real(O), real(O, I), real(I)), {(1, 1): "no_bias", (2, 0): True}),
    (case(aten.bmm.default, TOKENS, EXPERTS), {(0, 2): "no_bias", (1, 1): "no_bias"}),
    (case(aten.matmul.default, TOKENS, EXPERTS), {(0, 2): "no_bias", (1, 1): "no_bias"}),
    (case(aten.matmul.default, real(5, I), EXPERTS), BOTH),
    (case(aten.matmul.default, real(2, E, 5, I), EXPERTS), {(0, 3): "no_bias", (1, 1): "no_bias"}),
    (case(aten.matmul.default, real(O, I), real(2, I, 5)), BOTH),
    (case(aten.baddbmm.default, real(E, 1, O), TOKENS, EXPERTS), {(1, 2): True, (2, 1): True}),
    (case(aten.baddbmm.default, real(O), TOKENS, EXPERTS), {(1, 2): True, (2, 1): True}),
    (
        case(aten.einsum.default, "bnd,hd->bnh", [real(2, 5, I), real(O, I)]),
        {(0, 2): "no_bias", (1, 1): "no_bias"},
    ),
    (
        case(aten.einsum.default, "bnhd,ohd->bno", [real(2, 5, 3, I), real(O, 3, I)]),
        {(0, 2): "no_bias", (0, 3): "no_bias", (1, 1): "no_bias", (1, 2): "no_bias"},
    ),
    (
        case(aten.einsum.default, "...i,eio->...eo", [real(2, 5, I), EXPERTS]),
        {(0, 2): "no_bias", (1, 1): "no_bias"},
    ),
    (case(aten.einsum.default, "ii,oi->o", [real(I, I), real(O, I)]), {}),
    (case(aten.einsum.default, "bi,oi,hi->boh", [real(2, I), real(O, I), real(5, I)]), {}),
    (case(aten.einsum.default, "bi,oi->bo", [real(2, I), real(O, 1)]), {}),
    (case(aten.conv1d.default, real(2, I, 7), real(O, I, 3), real(O)), {(0, 1): True, (1, 1): "no_bias"}),
    (case(aten.conv1d.default, real(I, 7), real(O, I, 3)), {(0, 0): True, (1, 1): "no_bias"}),
    (
        case(aten.conv2d.default, real(2, I, 7, 5), real(O, I, 3, 3), None, [2, 1], [1, 0]),
        {(0, 1): "zero_padding", (1, 1): "zero_padding"},
    ),
    (case(aten.conv2d.default, real(2, I, 7, 5), real(O, 2, 3, 3), None, [1], [0], [1], 2), {(0, 1): True}),
    (case(aten.conv1d.padding, real(2, I, 7), real(8, 1, 3), real(8), [1], "valid", [1], 4), {(0, 1): True}),
    (
        case(aten.conv_transpose1d.default, real(2, I, 7), real(I, O, 3), real(O)),
        {(0, 1): "zero_padding", (1, 0): "zero_padding"},
    ),
    (
        case(aten.conv_transpose2d.input, real(2, I, 5, 3), real(I, 3, 2, 2), None, [1], [0], [0], 2),
        {(0, 1): "zero_padding"},
    ),
    (case(aten._grouped_mm.default, ROWS, MATRICES, torch.tensor([1, 5], dtype=torch.int32)), BOTH),
]


@pytest.mark.parametrize(("call", "wanted"), READS, ids=str)
def test_what_an_operator_reads(call, wanted):
    assert every_read(call, shifts=True) == wanted
    assert every_read(call, shifts=False) == dict.fromkeys(wanted, True)


DERIVED = {
    "a matrix behind t": (lambda x, w: torch.mm(x, w.t()), real(O, I)),
    "a matrix behind transpose": (lambda x, w: torch.matmul(x, w.transpose(0, 1)), real(O, I)),
    "one expert": (lambda x, w: torch.nn.functional.linear(x, w[1]), real(E, O, I)),
    "experts one by one": (
        lambda x, w: sum(torch.nn.functional.linear(x, w[i]) for i in range(E)),
        real(E, O, I),
    ),
    "halves": (lambda x, w: torch.mul(*(x @ half.t() for half in w.chunk(2))), real(O, I)),
    "a slice": (lambda x, w: torch.nn.functional.linear(x, w[2:]), real(O, I)),
    "cast": (lambda x, w: torch.nn.functional.linear(x, w.double()), real(O, I).float()),
    "read twice": (lambda x, w: (x @ w.t()) * torch.nn.functional.linear(x, w), real(O, I)),
    "all experts for every token": (lambda x, w: torch.matmul(x.unsqueeze(0), w.mT), real(E, O, I)),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_weight_may_be_made_of_a_larger_one(name):
    function, weight = DERIVED[name]
    check(function, real(5, I), [weight], 1, [matrix(3, 7), matrix(4, 3)])
