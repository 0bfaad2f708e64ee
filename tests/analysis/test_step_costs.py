"""What pays in training is decided by figures of usual devices, or by those measured on this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import normfuse
from normfuse.analysis import step_costs as held
from normfuse.analysis.step_costs import StepCosts, keep, step_costs
from normfuse.benchmark import step_costs as measuring
from normfuse.cli.app import app

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(held, "cache_folder", lambda: tmp_path / "kept")
    step_costs.cache_clear()
    yield held._file(CPU)
    step_costs.cache_clear()


def report() -> normfuse.Report:
    """Of a stream whose weights train, under the default policy."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    fast = torch.compile(
        model, backend=lambda gm, x: normfuse.normfuse_backend(gm, x, options={"normfuse.inner": "eager"})
    )
    fast(torch.randn(4, 8))
    return normfuse.last_report()


def test_measured_figures_decide(file: Path) -> None:
    assert step_costs(CPU) == StepCosts(0.0, 6.0)
    assert report().after == {"layer_norm": 1}
    keep(CPU, StepCosts(1e-9, 1e-12, "seconds"))
    torch.compiler.reset()
    assert report().after == {"rms_norm": 1}
    keep(CPU, StepCosts(1e-12, 1e-9, "seconds"))
    torch.compiler.reset()
    found = report()
    (site,) = found.sites
    assert site.refusal is not None
    # A linear of 8 x 8 and its bias in float32, and 4 x 8 values.
    assert "would take 2.88e-07 seconds to save 1.28e-10" in site.refusal.message


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"saved": "much", "spent": 1, "unit": "s"}'])
def test_a_damaged_file_is_left_out(text: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert step_costs(CPU) == StepCosts(0.0, 6.0)


def test_the_command_measures_and_keeps(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.torch, "compile", lambda forward: forward)
    monkeypatch.setattr(measuring, "_SIZES", {"cpu": (16, 8, torch.float32)})
    found = CliRunner().invoke(app, ["measure", "--seconds", "0.1"])
    assert found.exit_code == 0, found.output
    assert "kept in" in found.output
    costs = step_costs(CPU)
    assert costs.unit == "seconds"
    assert costs.spent > 0 <= costs.saved


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there() -> None:
    found = CliRunner().invoke(app, ["measure", "--device", "cuda"])
    assert found.exit_code != 0
    assert "there is no device cuda here" in found.output
