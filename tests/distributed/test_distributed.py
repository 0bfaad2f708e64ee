"""Compiled models that two processes share answer as plain ones do; what stays names the cause."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.distributed.cases import CASES, QUICK, Seen

ROOT = Path(__file__).parents[2]
#: What keeps norms as they are in evaluation; float64 throughout, a few hundred roundings deep.
REASONS = {
    "fsdp1": ["FSDP", "weight_sharded"],
    "fsdp2_root": ["FSDP", "weight_sharded"],
    "fsdp2_root_kept": ["FSDP", "weight_sharded"],
    "fsdp2_inside": ["FSDP", "weight_sharded"],
    "fsdp2_blocks": ["FSDP", "stream_is_output"],
    "fsdp2_blocks_kept": ["FSDP", "stream_is_output"],
    "tensor_parallel": ["DTensor"],
}


def outcomes(cases: Sequence[Callable[[], Seen]], folder: Path) -> list[dict[str, Seen]]:
    """What each of two processes saw, by case."""
    names = [case.__name__ for case in cases]
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.worker"]
    given = [[str(rank), "2", str(folder / "store"), *names] for rank in range(2)]
    running = [
        subprocess.Popen([*command, *one], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for one in given
    ]
    printed = [process.communicate(timeout=500) for process in running]
    for process, (_, problems) in zip(running, printed, strict=True):
        assert process.returncode == 0, problems.decode()[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in printed]


def check(cases: Sequence[Callable[[], Seen]], folder: Path) -> None:
    for seen in outcomes(cases, folder):
        for name, one in seen.items():
            assert one.pop("stays", []) == REASONS.get(name, []), name
            assert one
            for when, found in one.items():
                assert found < 1e-12, (name, when, found)


def test_models_that_two_processes_share(tmp_path: Path) -> None:
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_more_models_that_two_processes_share(tmp_path: Path) -> None:
    check([case for case in CASES if case not in QUICK], tmp_path)
