"""The benches of `make gpu`: what fails is said, and the rest is measured and stored."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="the kernels are written in Triton")

from bench import block_speed, kernel_speed, kernels


def _broken(*shape: int) -> None:
    raise RuntimeError("out of memory\nand more")


def _works(rows: int, width: int) -> kernel_speed.Contest:
    return kernel_speed.Contest("copy", (rows, width), 8, {"normfuse": lambda: None}, is_graph=False)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    device = SimpleNamespace(name="some device")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: device)
    monkeypatch.setattr(kernel_speed, "_copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(kernel_speed, "_seconds", lambda run: 2.0)
    monkeypatch.setattr(kernel_speed, "_CONTESTS", [(_broken, 2, 4), (_works, 2, 4)])
    monkeypatch.setattr(block_speed, "_measured", _broken)
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    return tmp_path


def test_what_fails_does_not_keep_the_rest_from_being_stored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="17 measurements failed; the others are in"):
        kernels._gpu(1000.0)
    held = json.loads((folder / "gpu.json").read_text())
    assert [one.get("error") for one in held["contests"]] == ["RuntimeError: out of memory", None]
    assert {one["error"] for one in held["blocks"]} == {"RuntimeError: out of memory"}
    assert held["contests"][1]["milliseconds"] == {"normfuse": 2000.0}
    assert "out of memory" in capsys.readouterr().out


def test_the_blocks_are_stored_whatever_becomes_of_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_speed, "_copy_bandwidth", _broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        kernels._gpu(1000.0)
    assert len(json.loads((folder / "gpu.json").read_text())["blocks"]) == 16


def test_what_comes_too_late_is_left_out(folder: Path) -> None:
    assert "left out" in block_speed.block_table(block_speed.measure_blocks(time.monotonic() - 1))
    assert kernel_speed.measure(time.monotonic() - 1)["contests"] == []
