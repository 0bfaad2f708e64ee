"""Many cases, in batches that can be stopped and taken up again: ``make fuzz CASES=20000``.

Each batch has a seed of its own and leaves one file behind; a batch whose file exists is not run again. A
failing network is shrunk and stored in the corpus, which every test run replays from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz.properties import FIRES, check
from tests.fuzz.recipe import Recipe
from tests.fuzz.strategy import recipes

__all__ = ["CORPUS", "SHARE", "find_failure", "run_batch", "shortfalls"]

CORPUS = Path(__file__).parent / "corpus"
BATCH = 250
SHARE = 0.02
"""In at least this share of the cases each rule has to fire."""


class Tally:
    """What a batch has seen so far."""

    def __init__(self) -> None:
        self.cases = 0
        self.distinct: set[Recipe] = set()
        self.fired: Counter[str] = Counter()

    def __call__(self, recipe: Recipe) -> None:
        fired = check(recipe)
        self.cases += 1
        self.distinct.add(recipe)
        self.fired += fired


def find_failure(
    number: int, cases: int, tally: Tally | None = None, shrink: bool = True
) -> tuple[Recipe, str] | None:
    """A network that breaks a property, as small as was found, with what it broke; None when all hold."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    counted = tally if tally is not None else Tally()
    failed: list[tuple[Recipe, str]] = []

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=phases,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(recipes())
    def run(recipe: Recipe) -> None:
        try:
            check(recipe) if failed else counted(recipe)
        except Exception as error:
            failed.append((recipe, f"{type(error).__name__}: {error}"))
            raise

    try:
        run()
    except Exception as error:
        if not failed:
            raise
        failed[-1] = (failed[-1][0], failed[-1][1] or repr(error))
    return failed[-1] if failed else None


def run_batch(number: int, cases: int, folder: Path, corpus: Path = CORPUS) -> None:
    """Run one batch and leave its figures in ``folder``, complete or not at all."""
    torch.set_num_threads(1)
    tally, started = Tally(), time.perf_counter()
    failure = find_failure(number, cases, tally)
    if failure is not None:
        store(failure[0], corpus)
    figures = {
        "batch": number,
        "cases": tally.cases,
        "distinct": len(tally.distinct),
        "seconds": time.perf_counter() - started,
        "fired": dict(tally.fired),
        "failure": None if failure is None else failure[1][:500],
    }
    target = folder / f"batch_{number:05d}.json"
    unfinished = target.with_suffix(".part")
    unfinished.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    unfinished.replace(target)


def store(recipe: Recipe, corpus: Path) -> Path:
    text = recipe.to_json() + "\n"
    path = corpus / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path.write_text(text, encoding="utf-8")
    return path


def summary(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all batches together."""
    found = list(batches)
    fired: Counter[str] = Counter()
    for batch in found:
        fired += Counter(batch["fired"])
    total = {key: sum(b[key] for b in found) for key in ("cases", "distinct", "seconds")}
    failures = [b["failure"] for b in found if b["failure"]]
    return {**total, "fired": dict(fired.most_common()), "failures": failures}


def shortfalls(fired: Counter[str] | dict[str, int], cases: int) -> list[str]:
    """The rules that fire too seldom for the fuzzer to say anything about them."""
    return [name for name in FIRES if fired.get(name, 0) < SHARE * cases]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("NORMFUSE_STRICT", "1")  # every stage is checked, as in tests
    numbers = range(math.ceil(given.cases / BATCH))
    waiting = [(n, BATCH, given.folder) for n in numbers if not (given.folder / _name(n)).exists()]
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=4) as pool:
        pool.starmap(run_batch, waiting, chunksize=1)
    total = summary(json.loads((given.folder / _name(n)).read_text(encoding="utf-8")) for n in numbers)
    missing = shortfalls(total["fired"], total["cases"])
    sys.stdout.write(json.dumps({**total, "rules that fire too seldom": missing}, indent=1) + "\n")
    return 1 if total["failures"] or missing else 0


def _name(number: int) -> str:
    return f"batch_{number:05d}.json"


if __name__ == "__main__":
    sys.exit(main())
