"""Constants fill large pages, keep their values, and nothing beside them is asked for."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from normfuse.backends import frozen_graph
from normfuse.freezing import large_pages
from normfuse.freezing.caches import lies_at
from normfuse.freezing.large_pages import PAGE, Arena, put_together


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What the system is asked for: address, bytes, advice."""
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(large_pages, "_madvise", lambda: lambda *given: asked.append(given) or 0)
    return asked


def aligned(pages: int) -> torch.Tensor:
    whole = torch.zeros((pages + 1) * PAGE, dtype=torch.uint8)
    return whole[-whole.data_ptr() % PAGE :][: pages * PAGE]


def test_an_arena_keeps_values_side_by_side() -> None:
    torch.manual_seed(0)
    values = [torch.randn(7, 5), torch.randn(3).bfloat16(), torch.empty(0), torch.randn(9, 4).t()]
    arena = Arena(4096)
    kept = [arena.keep(value) for value in values]
    for value, held in zip(values, kept, strict=True):
        assert held.dtype == value.dtype
        assert held.is_contiguous()
        assert torch.equal(held, value)
        assert held.data_ptr() % 64 == 0
        assert held.data_ptr() != value.data_ptr() or not value.numel()
    assert kept[0].data_ptr() % PAGE == 0
    assert [kept[n].data_ptr() - kept[0].data_ptr() for n in (1, 3)] == [192, 256]


def test_an_arena_grows() -> None:
    arena = Arena(400)
    values = [torch.full((n,), float(n)) for n in (60, 70, 1000, 5)]
    kept = [arena.keep(value) for value in values]
    assert all(torch.equal(held, value) for held, value in zip(kept, values, strict=True))
    assert len({held.untyped_storage().data_ptr() for held in kept}) == 4


@pytest.mark.parametrize("size", [0, 1, PAGE, 1 << 60])
def test_an_arena_takes_what_it_needs(size: int) -> None:
    kept = Arena(size).keep(torch.ones(10))
    assert torch.equal(kept, torch.ones(10))
    assert kept.untyped_storage().nbytes() <= (1 << 30) + PAGE


def test_only_pages_that_are_full_are_put_together(advised: list[tuple[int, int, int]]) -> None:
    memory = aligned(5)
    start = memory.data_ptr()
    # From inside the first page to inside the last one, in two parts that lie side by side; and a small one.
    first, second = memory[100 : 2 * PAGE + 50], memory[2 * PAGE + 60 : 4 * PAGE + 70]
    assert put_together([second, first, first, memory[5 * PAGE - 9 :]]) == 3
    pages = [(start + n * PAGE, PAGE, 25) for n in (1, 2, 3)]
    assert advised == [(start + PAGE, 3 * PAGE, 14), *pages]


def test_what_lies_between_is_left(advised: list[tuple[int, int, int]]) -> None:
    memory = aligned(3)
    put_together([memory[:PAGE], memory[2 * PAGE :]])
    asked = {address - memory.data_ptr() for address, _, _ in advised}
    assert asked == {0, 2 * PAGE}


def test_packed_weights_are_found(advised: list[tuple[int, int, int]]) -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(2048, 2048), 1)
    address, size = lies_at(packed)
    assert put_together([packed]) in {size // PAGE, size // PAGE - 1}
    assert all(address <= first and first + n <= address + size for first, n, _ in advised)


def test_the_system_keeps_values_and_addresses() -> None:
    torch.manual_seed(0)
    value = aligned(3).view(torch.float32).normal_()
    before, address = value.clone(), value.data_ptr()
    assert put_together([value]) <= 3
    assert torch.equal(value, before)
    assert value.data_ptr() == address


@pytest.mark.parametrize("text", ["always madvise [never]", None])
def test_nothing_is_asked_where_it_is_switched_off_or_not_known(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    monkeypatch.setattr(large_pages, "_MODE", tmp_path / "enabled")
    assert large_pages._madvise.__wrapped__() is None
    monkeypatch.setattr(large_pages, "_madvise", lambda: None)
    assert put_together([aligned(2)]) == 0


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="freezing needs MKL")
def test_a_frozen_graph_gives_its_copies_and_not_the_weights_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[torch.Tensor] = []
    monkeypatch.setattr(frozen_graph, "put_together", lambda constants: given.extend(constants))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 48), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48)).eval()
    exact, x = copy.deepcopy(model).double(), torch.arange(8)
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, wanted = fast(x), exact(x)
    # Two sums of at most 96 products in float32, in any order, and a bias.
    assert float((result - wanted).norm() / wanted.norm()) < 2 * 97 * 2**-24
    assert given
    places = {lies_at(one)[0] for one in given}
    assert places.isdisjoint(parameter.data_ptr() for parameter in model.parameters())
