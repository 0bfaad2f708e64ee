"""Plans are chosen on the device, kept, and taken by calls that measure nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels are written in Triton")

from normfuse.kernels import choice, linear_rms_norm, rms_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
EPS = 1e-5


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(choice, "_file", lambda: tmp_path / "kernels.json")
    choice._measured.cache_clear()
    yield
    choice._measured.cache_clear()


def test_a_choice_is_made_once_and_kept() -> None:
    x, weight = torch.randn(4, 4096, device="cuda"), torch.randn(512, 4096, device="cuda")
    first = rms_norm(x, eps=EPS), linear_rms_norm(x, weight, eps=EPS)
    assert [key.split(", ")[1] for key in choice._measured()] == ["norm", "linear_rms_norm"]
    assert all(0 < min(seconds.values()) < 1 for seconds, _ in choice._measured().values())
    choice._measured.cache_clear()
    second = rms_norm(x, eps=EPS), linear_rms_norm(x, weight, eps=EPS)
    assert len(choice._measured()) == 2
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    wanted = F.rms_norm(x.double(), (4096,), eps=EPS)
    assert (first[0] - wanted).abs().max() <= 100 * 2**-24 * wanted.abs().max()


def test_recording_and_compiling_measure_nothing() -> None:
    x = torch.randn(4, 2048, device="cuda")
    fast = torch.compile(lambda x: rms_norm(x, eps=EPS), fullgraph=True)
    compiled = fast(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = rms_norm(x, eps=EPS)
    graph.replay()
    assert choice._measured() == {}
    wanted = F.rms_norm(x.double(), (2048,), eps=EPS)
    for found in (compiled, recorded):
        assert (found - wanted).abs().max() <= 100 * 2**-24 * wanted.abs().max()
