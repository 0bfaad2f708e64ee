"""Inductor's code for a GPU, with the kernels in it, written on a machine that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")

from bench import gpu_page

ROOT = Path(__file__).resolve().parents[2]
BYTES = """
import json
import torch
from bench.gpu_count import count
from bench.gpu_stub import pretend
pretend()

def pairs(x):
    first, second = x.view(64, 16, 2).unbind(-1)
    return torch.stack((first - second, second + first), -1).view(64, 32)

functions = {
    "part": (lambda x: x[:, 8:16] * 2, (64, 32)),
    "whole": (lambda x: x * 2, (64, 32)),
    "again": (lambda x: (x - x.sum(-1, keepdim=True)).exp(), (64, 32)),
    "pairs": (pairs, (64, 32)),
    "neighbours": (lambda x: x[:-1] + x[1:], (64, 32)),
    "row": (lambda x: x[:1] + torch.zeros(64, 32), (64, 32)),
    "product": (lambda x: x[:, :16] @ x[:16, :16], (64, 32)),
}
found = {name: count(f, [torch.empty(shape)], False) for name, (f, shape) in functions.items()}
print(json.dumps({name: [one.kernels, one.calls, one.moved // 4] for name, one in found.items()}))
"""
SCRIPT = """
import json
from bench.gpu_codegen import measure
from bench.gpu_stub import pretend
pretend()
print(json.dumps(measure({widths!r}, {work!r}, {models!r}, {ways!r})))
"""
WAYS = ("Inductor", "normfuse", "norms deleted")


def _run(script: str) -> Any:
    """Strict mode compares the graphs of all stages with what their operators say."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NORMFUSE_STRICT": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def _measured(
    work: str, models: tuple[str, ...] = ("GPT-2", "Llama"), ways: tuple[str, ...] = WAYS, width: int = 1024
) -> dict[str, dict[str, dict]]:
    """By model and way."""
    entries = _run(SCRIPT.format(widths=(width,), work=(work,), models=models, ways=ways))
    return {name: {one["block"]: one for one in entries if one["model"] == name} for name in models}


def _launches(one: dict) -> int:
    return one["kernels"] + one["calls"]


def test_a_decode_step_loses_a_launch_for_each_norm():
    """Each of the two norms of a block is in the product that reads it, with the sum in front."""
    (found,) = _measured("decode", ("GPT-2",), width=256).values()
    assert found["norms deleted"]["calls"] == 5
    assert found["normfuse"]["calls"] == 3
    assert _launches(found["normfuse"]) == _launches(found["Inductor"]) - 2
    assert found["normfuse"]["norm_bytes"] <= 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_prompt_loses_most_of_the_norms_bytes():
    for name, found in _measured("prefill").items():
        assert found["normfuse"]["norm_bytes"] < found["Inductor"]["norm_bytes"] / 2, name
        assert _launches(found["normfuse"]) <= _launches(found["Inductor"]), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_step_is_left_as_it_is_unless_kernels_are_asked_for():
    for name, found in _measured("training", ways=(*WAYS, "kernels")).items():
        assert found["normfuse"] == {**found["Inductor"], "block": "normfuse"}, name
        assert found["kernels"]["calls"] == found["Inductor"]["calls"], name
        assert found["kernels"]["norm_bytes"] != found["Inductor"]["norm_bytes"], name


@pytest.mark.slow
def test_bytes_are_those_of_what_is_indexed() -> None:
    """Kernels, calls and numbers moved, of 64 rows of 32 numbers."""
    assert _run(BYTES) == {
        "part": [1, 0, 2 * 64 * 8],
        "whole": [1, 0, 2 * 64 * 32],
        "again": [1, 0, 2 * 64 * 32],
        "pairs": [1, 0, 2 * 64 * 32],
        "neighbours": [1, 0, 64 * 32 + 63 * 32],
        "row": [1, 0, 32 + 64 * 32],
        "product": [0, 1, 2 * 64 * 16 + 16 * 16],
    }


def test_the_page_has_the_stored_counts() -> None:
    assert gpu_page.current() == gpu_page.PAGE.read_text(encoding="utf-8"), "run python -m bench.gpu_page"
