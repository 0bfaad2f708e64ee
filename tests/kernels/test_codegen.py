"""Inductor's code for a GPU, with the kernels in it, written on a machine that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json
from bench.gpu_codegen import measure
from bench.gpu_stub import pretend
pretend()
print(json.dumps(measure({widths!r}, {work!r}, {models!r}, {ways!r})))
"""
WAYS = ("Inductor", "normfuse", "norms deleted")


def _measured(
    work: str, models: tuple[str, ...] = ("GPT-2", "Llama"), ways: tuple[str, ...] = WAYS, width: int = 1024
) -> dict[str, dict[str, dict]]:
    """By model and way. Strict mode compares the graphs of all stages with what their operators say."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NORMFUSE_STRICT": "1"}
    script = SCRIPT.format(widths=(width,), work=(work,), models=models, ways=ways)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    entries = json.loads(done.stdout.splitlines()[-1])
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
