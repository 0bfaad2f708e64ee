"""The library of a product is the one that was measured to be faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from normfuse.freezing import library

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()), reason="needs both"
)


class Products(nn.Module):
    """One with a bias and an activation behind it, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize(
    ("times", "wanted", "other"),
    [
        ([2.0, 1.0], "mkldnn._linear_pointwise", "mkl._mkl_linear"),
        ([1.0, 0.99], "mkl._mkl_linear", "mkldnn."),
    ],
)
def test_the_faster_one_is_taken(
    times: list[float], wanted: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_measured", dict)
    monkeypatch.setattr(library, "_remember", lambda known: None)
    monkeypatch.setattr(library, "_measure", lambda rows, weight: times)
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(64, 48)
    fast = torch.compile(model, backend="normfuse")
    with torch.no_grad():
        found, (code,) = run_and_get_code(fast, x)
        exact = model.double()(x.double())
    assert wanted in code
    assert other not in code
    # Two sums of at most 96 products in float32, in any order: 96 * 2**-24, twice, with room for both.
    assert float((found - exact).norm() / exact.norm()) < 4 * 96 * 2**-24


def test_inductor_chooses_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_measure", lambda rows, weight: pytest.fail("measured"))
    library._register()
    fast = torch.compile(Products().eval(), options={"freezing": True})
    with torch.no_grad():
        fast(torch.randn(16, 48))


def test_both_are_measured_and_kept_for_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_file", lambda: tmp_path / "kept" / "products.json")
    library._measured.cache_clear()
    calls: list[int] = []
    measure = library._measure

    def counted(rows: int, weight: torch.Tensor) -> list[float]:
        calls.append(rows)
        return measure(rows, weight)

    monkeypatch.setattr(library, "_measure", counted)
    weight = torch.randn(48, 96)
    first = library._onednn_is_faster(32, weight)
    library._measured.cache_clear()
    assert library._onednn_is_faster(32, weight) == first
    assert calls == [32]
    ((key, times),) = library._measured().items()
    assert "32 x 48 x 96" in key
    assert len(times) == 2
    assert all(time > 0 for time in times)
    library._measured.cache_clear()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": ["x", "y"]}'])
def test_a_damaged_file_is_no_obstacle(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "products.json").write_text(text)
    monkeypatch.setattr(library, "_file", lambda: tmp_path / "products.json")
    library._measured.cache_clear()
    assert library._measured() == {}
    library._measured.cache_clear()
