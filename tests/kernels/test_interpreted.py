"""The kernels under Triton's interpreter: in another process, as it has to be on before the import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are written in Triton")
ROOT = Path(__file__).resolve().parents[2]


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_under_the_interpreter():
    assert " passed" in _run("tests/kernels/interpreted")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_grid_under_the_interpreter():
    assert " passed" in _run("tests/kernels/interpreted", "-m", "slow", "--timeout=3000")
