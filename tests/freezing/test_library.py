"""The library of a product is the fastest one whose error is within the budget."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from normfuse.freezing import fastest as measuring
from normfuse.freezing import library
from normfuse.freezing.blocks import blocks

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="needs both"
)

Figures = tuple[dict[str, float], dict[str, float]]


def figures(seconds: tuple[float, ...], errors: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Figures:
    """Of the model's own product, MKL's, and oneDNN's."""
    names = ("plain", "mkl", "onednn")
    return dict(zip(names, seconds, strict=True)), dict(zip(names, errors, strict=True))


class Products(nn.Module):
    """One with a bias and an activation behind it, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(measuring, "_measured", dict)
    monkeypatch.setattr(measuring, "_remember", lambda known: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (figures((3.0, 2.0, 1.0)), "onednn"),
        (figures((3.0, 1.0, 2.0)), "mkl"),
        (figures((1.0, 1.0, 0.99)), "plain"),
        (figures((3.0, 2.0, 1.0), (1.0, 1.2, 1.3)), "mkl"),
        (figures((3.0, 2.0, 1.0), (1.0, 2.5, 2.7)), "plain"),
    ],
)
def test_the_fastest_that_is_precise_is_taken(
    found: Figures, wanted: str, measured: pytest.MonkeyPatch
) -> None:
    measured.setattr(measuring, "_measure", lambda *_: found)
    assert measuring.fastest(7, torch.randn(48, 96), total=0) == wanted


@pytest.mark.parametrize(
    ("found", "wanted", "others"),
    [
        (figures((3.0, 2.0, 1.0)), "mkldnn._linear_pointwise", ("mkl._mkl_linear", "extern_kernels.")),
        (figures((1.0, 1.0, 1.0)), "extern_kernels.", ("mkl._mkl_linear", "mkldnn._linear")),
    ],
)
def test_inductor_takes_what_is_chosen(
    found: Figures, wanted: str, others: tuple[str, ...], measured: pytest.MonkeyPatch
) -> None:
    measured.setattr(measuring, "_measure", lambda *_: found)
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(64, 48)
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        result, (code,) = run_and_get_code(fast, x)
        exact = model.double()(x.double())
    assert wanted in code
    assert not [name for name in others if name in code]
    # Two sums of at most 96 products in float32, in any order: 96 * 2**-24, twice, with room for both.
    assert float((result - exact).norm() / exact.norm()) < 4 * 96 * 2**-24


def test_sums_in_blocks_are_short() -> None:
    _, errors = measuring._measure(64, torch.randn(4096, 64), is_cold=False)
    # 192 terms and 22 sums are rounded as often, each time by 2**-24 of the sizes added: of 4,096 terms these
    # are 0.64 * 4096 together, and the sum is about their root, 64.
    assert errors["blocks"] < (192 + 22) * 2**-24 * 64


def test_inductor_chooses_elsewhere(measured: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    measured.setattr(measuring, "_measure", lambda rows, *_: calls.append(rows) or figures((3.0, 2.0, 1.0)))
    library._register()
    fast = torch.compile(Products().eval())
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        _, (code,) = run_and_get_code(fast, torch.randn(16, 48))
    assert calls == []
    assert "mkl._mkl_linear" in code


def test_all_are_measured_and_kept_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_file", lambda: tmp_path / "kept" / "products.json")
    measuring._measured.cache_clear()
    calls: list[int] = []
    measure = measuring._measure

    def counted(rows: int, weight: torch.Tensor, is_cold: bool) -> Figures:
        calls.append(rows)
        return measure(rows, weight, is_cold)

    monkeypatch.setattr(measuring, "_measure", counted)
    weight = torch.randn(48, 96)
    first = measuring.fastest(32, weight, total=0)
    measuring._measured.cache_clear()
    assert measuring.fastest(32, weight, total=0) == first
    assert calls == [32]
    ((key, (seconds, errors)),) = measuring._measured().items()
    assert "32 x 48 x 96" in key
    assert all(time > 0 for time in seconds.values())
    # A sum of 48 products in float32, in any order.
    assert all(0 < error < 48 * 2**-24 for error in errors.values())
    measuring._measured.cache_clear()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": ["x", "y"]}', '{"a": [{}, {}]}'])
def test_a_damaged_file_is_no_obstacle(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "products.json").write_text(text)
    monkeypatch.setattr(measuring, "_file", lambda: tmp_path / "products.json")
    measuring._measured.cache_clear()
    assert measuring._measured() == {}
    measuring._measured.cache_clear()


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 5), (0.1, 2)])
def test_what_takes_long_is_measured_less_often(
    seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, multiplied, multiply = count(), list[int](), torch.mm
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: seconds * next(clock))
    monkeypatch.setattr(torch, "mm", lambda *given: multiplied.append(1) or multiply(*given))
    found, errors = measuring._measure(7, torch.randn(48, 96), is_cold=False)
    assert len(multiplied) == calls
    assert found == pytest.approx(dict.fromkeys(found, seconds))
    assert errors.keys() == found.keys()


def test_of_a_large_product_a_part_is_measured() -> None:
    rows, terms, columns = 64, 768, 50257
    part = measuring._columns(rows, terms, columns)
    assert part < columns
    assert rows * terms * part <= measuring._MEASURED
    assert measuring._columns(rows, terms, 96) == 96
    assert measuring._columns(1 << 20, 1 << 20, columns) >= measuring._COMPARED


def test_the_seconds_of_a_part_stand_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: 0.001 * next(clock))
    monkeypatch.setattr(measuring, "_columns", lambda *_: 24)
    seconds, _ = measuring._measure(7, torch.randn(48, 96), is_cold=False)
    assert seconds == pytest.approx(dict.fromkeys(seconds, 0.004))


def test_what_is_not_precise_enough_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    operators = blocks()
    assert operators is not None

    def rough(data: torch.Tensor, *_: object) -> torch.Tensor:
        calls.append(len(data))
        return torch.zeros(len(data), 96)

    monkeypatch.setattr(measuring, "blocks", lambda: operators._replace(multiply=rough))
    _, errors = measuring._measure(4, torch.randn(48, 96), is_cold=False)
    assert calls == [4]
    assert errors["blocks"] > errors["plain"] * measuring._ERROR
