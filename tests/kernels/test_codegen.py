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
print(json.dumps(measure((1024,), {work!r})))
"""


def _measured(*work: str) -> dict[str, dict]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {one["block"]: one for one in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.slow
def test_a_decode_step_loses_a_launch_for_each_norm():
    """1,024 values in bfloat16: a norm of Inductor's reads the row and its weight, and writes a row."""
    found = _measured("decode")
    launches = {way: one["kernels"] + one["calls"] for way, one in found.items()}
    assert found["norms deleted"]["calls"] == 5
    assert launches["Inductor"] == launches["norms deleted"] + 2
    assert launches["linear_rms_norm"] == launches["norms deleted"]
    assert found["Inductor"]["norm_bytes"] == 2 * 3 * 1024 * 2
    assert found["linear_rms_norm"]["norm_bytes"] == 2 * 4


@pytest.mark.slow
def test_a_training_step_with_the_kernels():
    found = _measured("training")
    assert found["rms_norm kernels"]["calls"] == found["Inductor"]["calls"]
    assert 0.9 < found["rms_norm kernels"]["norm_bytes"] / found["Inductor"]["norm_bytes"] < 1.1
