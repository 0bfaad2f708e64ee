"""Maps between a vector without a mean and d - 1 coordinates, against matrices from their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, GraphModule

from normfuse.analysis.bases import AppendSum, AppendZero, DropLast, FromZeroMean, SubtractLast, ToZeroMean
from normfuse.analysis.channel_map import Centre, ChannelMap
from tests.analysis.dense import applied

#: Sums of some ten terms of size one, in float64.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}
WIDTHS = (2, 3, 8)


def last_dropped(d: int) -> torch.Tensor:
    return torch.eye(d, dtype=torch.float64)[:-1]


def last_restored(d: int) -> torch.Tensor:
    return torch.cat([torch.eye(d - 1, dtype=torch.float64), -torch.ones(1, d - 1, dtype=torch.float64)])


def reflected(d: int) -> torch.Tensor:
    """``U``: the Householder reflection of ``1 / sqrt(d) - e_d`` without its last column."""
    v = torch.full((d, 1), d**-0.5, dtype=torch.float64)
    v[-1] -= 1
    return (torch.eye(d, dtype=torch.float64) - 2 * v @ v.T / (v.T @ v))[:, :-1]


#: For a width d of the whole vector: the map, its matrix.
MAPS = {
    "drop": (DropLast(), last_dropped),
    "append zero": (AppendZero(), lambda d: last_dropped(d).T),
    "append sum": (AppendSum(), last_restored),
    "subtract last": (SubtractLast(), lambda d: last_restored(d).T),
    "to": (ToZeroMean(), lambda d: reflected(d).T),
    "from": (FromZeroMean(), reflected),
}


def emitted(mapping: ChannelMap, value: torch.Tensor, axis: int) -> torch.Tensor:
    graph = Graph()
    node = graph.placeholder("value")
    node.meta["val"] = value
    graph.output(mapping.emit(graph, node, axis))
    made: torch.Tensor = GraphModule({}, graph)(value)
    return made


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("name", MAPS)
def test_a_map_and_its_transpose_are_these_matrices(name: str, d: int) -> None:
    mapping, matrix_of = MAPS[name]
    matrix = matrix_of(d)
    for one, dense in ((mapping, matrix), (mapping.transposed(), matrix.T)):
        for axis in range(3):
            sizes = [4, 5, 6]
            sizes[axis] = dense.shape[1]
            value = torch.randn(sizes, generator=torch.Generator().manual_seed(axis), dtype=torch.float64)
            torch.testing.assert_close(emitted(one, value, axis), applied(value, dense, axis), **CLOSE)
        assert one.width(dense.shape[1]) == dense.shape[0]
    assert mapping.transposed().transposed() == mapping


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize(("into", "back"), [(DropLast(), AppendSum()), (ToZeroMean(), FromZeroMean())])
def test_what_has_no_mean_comes_back(into: ChannelMap, back: ChannelMap, d: int) -> None:
    x = emitted(Centre(), torch.randn(4, d, dtype=torch.float64), 1)
    torch.testing.assert_close(emitted(back, emitted(into, x, 1), 1), x, **CLOSE)


def test_an_orthonormal_basis_keeps_lengths_and_forgets_the_mean() -> None:
    x = torch.randn(4, 7, dtype=torch.float64)
    z = emitted(ToZeroMean(), x, 1)
    torch.testing.assert_close(z.norm(dim=1), emitted(Centre(), x, 1).norm(dim=1), **CLOSE)
    torch.testing.assert_close(emitted(ToZeroMean(), x + 100, 1), z, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MAPS)
def test_a_narrow_value_is_rounded_once(name: str) -> None:
    """Half of a unit in the last place from the exact value, and not more."""
    mapping, matrix_of = MAPS[name]
    dense = matrix_of(9)
    value = torch.randn(50, dense.shape[1], generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = value.double() @ dense.T
    made = emitted(mapping, value, 1)
    assert made.dtype == torch.bfloat16
    # Sums in float32 of nine terms, then one rounding to 8 bits.
    unit = torch.finfo(torch.bfloat16).eps / 2
    size = value.abs().double().sum(1, keepdim=True)
    assert bool(((made.double() - exact).abs() <= unit * exact.abs() + 1e-6 * size).all())
