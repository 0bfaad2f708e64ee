"""What memory holds, compared with what it held."""

from __future__ import annotations

import pytest
import torch

from normfuse.folding import contents, native
from normfuse.folding.contents import TURNS, Contents
from normfuse.folding.sampled import are_unchanged, sampled
from tests.backends.networks import example, prenorm
from tests.backends.test_staleness import Counted

SHAPES = [(3,), (300,), (40, 50), (64, 8, 3, 3), (1, 1000), (5, 1), (0, 4), ()]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_word_that_is_compared_is_compared_with_itself(shape, dtype) -> None:
    tensor = (torch.randn(shape) > 0).to(dtype)
    for may_be_statistics in (False, True):
        held = Contents.of(tensor, may_be_statistics)
        assert not held.has_changed()
        assert held.few is None or not any(held.few.differs(turn) for turn in range(TURNS))
    assert sampled(tensor) is None or are_unchanged([sampled(tensor)])


@pytest.mark.parametrize("shape", [(256,), (7, 36), (16, 2, 4)])
def test_of_a_kibibyte_every_byte_counts(shape) -> None:
    tensor = torch.zeros(shape)
    for index in range(0, tensor.numel(), 13):
        held = Contents.of(tensor)
        tensor.view(-1)[index] = torch.nan
        assert held.has_changed()


@pytest.mark.parametrize("layout", ["rows", "columns", "strided"])
def test_a_table_of_statistics_shows_a_change_of_any_row_or_column(layout) -> None:
    table = torch.zeros(128, 2 if layout == "strided" else 1, 256)[:, 0]
    for index in range(0, 128, 9):
        held = Contents.of(table, may_be_statistics=True)
        (table[index] if layout == "rows" else table[:, index]).sub_(1.0)
        assert held.has_changed()


@pytest.mark.parametrize("shape", [(8, 64, 32), (768, 3072), (900, 7)])
def test_a_thousand_words_show_a_change_of_any_row(shape) -> None:
    weight = torch.zeros(shape, dtype=torch.float64)
    few = Contents.of(weight).few
    assert few is not None
    assert few.turns == TURNS
    for index in range(0, shape[0], 7):
        held = Contents.of(weight)
        weight[index] -= 1.0
        assert held.has_changed()


@pytest.mark.parametrize("in_c", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(40, 50), (333, 7), (64, 64)])
def test_each_word_has_its_turn(rows: int, columns: int, in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed word shows at one turn of all, that of its number, wherever those of the turn are kept."""
    weight = torch.randn(rows, columns, dtype=torch.float64)
    few = Contents.of(weight).few
    assert few is not None
    differs = few.differs
    if in_c:
        monkeypatch.setattr(native, "was_imported", lambda: True)
        holds = native.comparison([], [few.run()])
        assert holds is not None

        def differs(turn: int) -> bool:
            return not holds((), turn)

    words, flat = len(few.now), weight.view(-1)
    for number in range(0, words, 29):
        place = few._step // 8 * number
        held = flat[place].item()
        flat[place] += 1.0
        assert [turn for turn in range(TURNS) if differs(turn)] == [number % TURNS]
        assert differs(number % TURNS + 3 * TURNS)
        flat[place] = held
        assert not any(differs(turn) for turn in range(TURNS))


def test_nan_equals_itself_and_minus_zero_is_not_zero() -> None:
    for tensor in (torch.full((9,), torch.nan), torch.zeros(9), torch.zeros(3000)):
        held, other = Contents.of(tensor), sampled(tensor)
        assert not held.has_changed()
        assert are_unchanged([other])
        tensor.neg_()
        assert held.has_changed()
        assert not are_unchanged([other])


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(0, 4), torch.empty(4, 0), torch.eye(3).to_sparse(), torch.empty(3, device="meta")],
    ids=["no rows", "no columns", "sparse", "meta"],
)
def test_where_there_is_nothing_to_compare_nothing_changes(tensor) -> None:
    assert Contents.of(tensor) == Contents()
    assert not Contents.of(tensor).has_changed()
    assert tensor.is_meta or sampled(tensor) is None


def test_entries_of_two_words_are_not_sampled() -> None:
    assert sampled(torch.zeros(3, dtype=torch.complex128)) is None


@pytest.mark.parametrize("size", [10, 10_000])
def test_elsewhere_entries_are_compared(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_is_on_host", lambda tensor: False)
    tensor = torch.zeros(size)
    held = Contents.of(tensor)
    assert held.elsewhere is not None
    assert not held.has_changed()
    tensor[::2] = 1.0
    assert held.has_changed()


def test_what_may_hold_statistics_is_compared_more_closely() -> None:
    """All of it, up to 64 KiB; beyond that the same words at every call, one in every row at least."""
    table = torch.zeros(100, 100)
    weight, statistics = Contents.of(table), Contents.of(table, may_be_statistics=True)
    assert (weight.whole, statistics.few) == (None, None)
    assert statistics.whole is not None
    larger = torch.zeros(4000, 20)
    weight, statistics = Contents.of(larger), Contents.of(larger, may_be_statistics=True)
    assert statistics.few is statistics.many
    assert (statistics.few.turns, weight.few.turns) == (1, TURNS)
    assert len(weight.many.now) <= 2**11 < 4000 <= len(statistics.many.now)


def test_elsewhere_graphs_that_take_turns_compare_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, whose memory cannot be read by address."""
    monkeypatch.setattr(contents, "_is_on_host", lambda tensor: False)
    model = prenorm(width=64)
    counted = Counted(model, dynamic=False)
    for batch in (4, 7, 4, 7):
        counted.difference(example(batch))
    model.blocks[0].down.weight.data += torch.randn(64, 128, dtype=torch.float64)
    assert counted.difference(example(7)) > 1e-3
    assert counted.difference(example(4)) < 1e-12
    assert counted.difference(example(7)) < 1e-12
    assert counted.graphs == 2
