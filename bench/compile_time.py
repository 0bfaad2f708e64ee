"""Compile time of GPT-2 with normfuse beside Inductor: cold, warm, and how it grows with depth.

    python bench/compile_time.py --json build/compile_time.json

Each figure is the median over fresh processes; a cold one starts with an empty Inductor cache, a warm one
with the cache that the cold one before it left. The two backends take turns. Shares and growth are of
processor seconds, those of the compilers among them. How normfuse's own part grows is taken from models of
width 48, whose rewritten graphs run as they are.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["Target", "measure", "targets"]

_ONCE = Path(__file__).with_name("compile_once.py")
#: Depths between which normfuse's own part is compared, of models whose rewritten graphs run as they are.
_GROWS = (12, 96)
_ALONE = ("--width", "48", "--no-inductor")

#: (layers, backend, start) -> one entry of ``compile_once`` per repetition.
Runs = dict[tuple[int, str, str], list[dict[str, float]]]


@dataclass(frozen=True)
class Target:
    """A figure and the limit that it should stay under."""

    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def measure(depths: tuple[int, int], candidate: str, repeats: int) -> Runs:
    """Compile both depths with Inductor and ``candidate``, cold and then warm."""
    runs: Runs = defaultdict(list)
    for _ in range(repeats):
        for layers in depths:
            for backend in ("inductor", candidate):
                with tempfile.TemporaryDirectory(prefix="compile-time-") as cache:
                    for start in ("cold", "warm"):
                        runs[layers, backend, start].append(_in_fresh_process(layers, backend, cache))
        for layers in _GROWS:
            with tempfile.TemporaryDirectory(prefix="compile-time-") as cache:
                runs[layers, candidate, "alone"].append(_in_fresh_process(layers, candidate, cache, *_ALONE))
    return dict(runs)


def _in_fresh_process(layers: int, backend: str, cache: str, *more: str) -> dict[str, float]:
    """Compilers run in children of the process, one after the other, so that their seconds are known."""
    command = [sys.executable, str(_ONCE), "--layers", str(layers), "--backend", backend, *more]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: seconds for name, seconds in figures.items() if seconds is not None}


def seconds_of(runs: Runs, key: tuple[int, str, str], what: str = "total") -> float | None:
    """Median over the repetitions; None when it was not recorded."""
    values = [run[what] for run in runs.get(key, ()) if what in run]
    return median(values) if values else None


def targets(runs: Runs, depths: tuple[int, int], candidate: str) -> list[Target]:
    """The figures that have a limit, as far as they were recorded."""
    shallow, deep = depths
    cold, deep_cold = (shallow, candidate, "cold"), (deep, candidate, "cold")
    warm, inductor_warm = (shallow, candidate, "warm"), (shallow, "inductor", "warm")
    total, own = seconds_of(runs, cold), seconds_of(runs, cold, "own_cpu")
    few, many = (seconds_of(runs, (layers, candidate, "alone"), "own_cpu") for layers in _GROWS)
    fractions = [
        (f"own share of a cold start, {shallow} layers", own, seconds_of(runs, cold, "cpu"), 0.1),
        ("warm start over Inductor's", seconds_of(runs, warm), seconds_of(runs, inductor_warm), 1.3),
        (f"total, {deep} over {shallow} layers", seconds_of(runs, deep_cold), total, 4.5),
        (f"own part, {deep} over {shallow} layers", seconds_of(runs, deep_cold, "own_cpu"), own, 4.5),
        (f"own part, {_GROWS[1]} over {_GROWS[0]} narrow layers", many, few, 9.0),
    ]
    return [Target(name, a / b, limit) for name, a, b, limit in fractions if a is not None and b]


def seconds_table(runs: Runs) -> Table:
    """Every measured median."""
    table = Table(
        "layers", "backend", "start", "first call (s)", "normfuse's own (s)", "processor (s)", "own"
    )
    for layers, backend, start in runs:
        found = [seconds_of(runs, (layers, backend, start), w) for w in ("total", "own", "cpu", "own_cpu")]
        cells = ["" if figure is None else f"{figure:.2f}" for figure in found]
        table.add_row(str(layers), backend, start, *cells)
    return table


def targets_table(found: list[Target]) -> Table:
    """Each figure beside its limit."""
    table = Table("figure", "found", "limit", "")
    for target in found:
        verdict = "met" if target.met else "MISSED"
        table.add_row(target.name, f"{target.value:.3f}", f"<= {target.limit:g}", verdict)
    return table


def to_dict(runs: Runs, found: list[Target]) -> dict[str, Any]:
    """Everything, with what it was measured on."""
    import torch

    keys = ("layers", "backend", "start")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": [dict(zip(keys, key, strict=True)) | {"seconds": runs[key]} for key in runs],
        "targets": [vars(target) | {"met": target.met} for target in found],
    }


def main(
    depths: Annotated[tuple[int, int], typer.Option(help="Layers of the two models.")] = (12, 48),
    backend: Annotated[str, typer.Option(help="What stands beside Inductor.")] = "normfuse",
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes per figure.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Measure, print, and write FILE when one is named."""
    runs = measure(depths, backend, repeats)
    found = targets(runs, depths, backend)
    console = Console()
    console.print(seconds_table(runs))
    console.print(targets_table(found))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(to_dict(runs, found), indent=2), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
