"""The check of all weights in one call of C code, and the same in Python."""

from __future__ import annotations

import sys
import weakref

import pytest
import torch
from torch import nn

from normfuse.folding import known, native
from normfuse.folding.known import Known
from normfuse.folding.store import Reader
from normfuse.folding.watch import Watch

PLACES = (1, 4, 2)


def weights() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3)), torch.randn(40, 50).t(), nn.Parameter(torch.randn(9, 300))]


def looked_at(sources: list[torch.Tensor]) -> Known:
    checks = [
        (place, weakref.ref(s), s._version, s.data_ptr(), s.dtype, s.shape, s.stride())
        for place, s in zip(PLACES, sources, strict=True)
    ]
    return Known(0, checks, [Watch(s, False, None) for s in sources])


def inputs(sources: list[torch.Tensor]) -> list[object]:
    given: list[object] = [torch.zeros(2), 3, None, "text", 5.0]
    for place, source in zip(PLACES, sources, strict=True):
        given[place] = source
    return given


@pytest.fixture(params=[tuple, list], ids=["in C", "in Python"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Only a tuple is looked at in C."""
    monkeypatch.setattr(native, "was_imported", lambda: True)
    if request.param is tuple:
        for name in ("_are_in_place", "_were_written"):
            monkeypatch.delattr(known.Known, name)
    return request.param


def in_place(source: torch.Tensor) -> None:
    with torch.no_grad():
        source.add_(1.0)


def counted(source: torch.Tensor) -> None:
    with torch.no_grad():
        source.mul_(1.0)


def behind(source: torch.Tensor) -> None:
    source.data.zero_()


def elsewhere(source: torch.Tensor) -> None:
    source.data = source.data.clone()


def moved(source: torch.Tensor) -> None:
    with torch.no_grad():
        source.set_(source.detach().clone())


def swapped(source: torch.Tensor) -> None:
    """The Python object stays, and holds another tensor with the same entries."""
    copy = source.detach().clone()
    torch.utils.swap_tensors(source, nn.Parameter(copy) if isinstance(source, nn.Parameter) else copy)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("change", [in_place, counted, behind, elsewhere, moved, swapped])
def test_a_changed_weight_does_not_hold(change, number: int, kind: type) -> None:
    sources = weights()
    one = looked_at(sources)
    given = kind(inputs(sources))
    assert all(one.holds_for(given, call) for call in range(70))
    change(sources[number])
    assert not one.holds_for(given, 70)


@pytest.mark.parametrize("number", range(3))
def test_another_tensor_with_the_same_entries_does_not_hold(number: int, kind: type) -> None:
    sources = weights()
    one = looked_at(sources)
    others = list(sources)
    others[number] = sources[number].detach()
    assert one.holds_for(kind(inputs(sources)), 0)
    assert not one.holds_for(kind(inputs(others)), 0)
    assert one.holds_for(kind(inputs(sources)), 0)


def test_inputs_that_are_missing_are_an_error_and_not_read(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = weights()
    one = looked_at(sources)
    monkeypatch.undo()
    with pytest.raises(IndexError):
        one.holds_for(kind(inputs(sources)[:4]), 0)


def test_a_source_that_is_gone_is_looked_at_in_python() -> None:
    sources = weights()
    gone = weakref.ref(torch.zeros(1))
    held = Known(0, [(0, gone, 0, 0, torch.float32, torch.Size([1]), (1,))], [])
    assert held._compare is None
    assert not held.holds_for((sources[0],), 0)


def test_where_tensors_are_held_otherwise_python_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "was_imported", lambda: True)
    monkeypatch.setattr(native, "tensor_layout", lambda: None)
    native._function.cache_clear()
    try:
        one = looked_at(sources := weights())
        assert one._compare is None
        assert one.holds_for(tuple(inputs(sources)), 0)
    finally:
        native._function.cache_clear()


@pytest.mark.parametrize("is_ending", [False, True])
def test_weights_that_go_with_the_interpreter_change_nothing(
    is_ending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then modules are taken apart already, and whatever is called fails with a message of its own."""
    monkeypatch.setattr(sys, "is_finalizing", lambda: is_ending)
    source = torch.zeros(3)
    reader = Reader([source])
    del source
    assert reader.is_released != is_ending
