"""Run the tests against every mutant: ``make mutants``.

PyTorch is imported once; each mutant lives in a forked process in which one module of normfuse has another
source. A mutant is killed when a test fails. What survives has to be explained in ``survivors.json``.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).parent / "survivors.json"
TESTS = (
    ["tests/analysis", "tests/patterns"],
    ["tests/fuzz/test_corpus.py", "tests/fuzz/test_fuzz.py", "-k", "holds"],
    ["tests/passes", "-k", "not compil"],
)
"""In this order: the fast ones kill most."""
SECONDS = 300

__all__ = ["SURVIVORS", "explained", "is_killed", "main"]


class _Other(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module under its name with a source of its own."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, f"<mutant of {self.name}>", "exec"), module.__dict__)


def _child(module: str, source: str, suites: Any) -> None:
    import pytest

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for name in [n for n in sys.modules if n.split(".")[0] in ("normfuse", "tests")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Other(f"normfuse.{module}", source))
    for suite in suites:
        if pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *suite]) != 0:
            os._exit(1)
    os._exit(0)


def is_killed(module: str, source: str, suites: Any = TESTS, seconds: float = SECONDS) -> bool:
    """Whether some test fails (or hangs) with this source of the module."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(module, source, suites))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode != 0


def explained() -> dict[str, str]:
    """Mutants that no test can kill, and why each is the same program."""
    found: dict[str, str] = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the mutants to run")
    parser.add_argument("--suites", type=int, default=len(TESTS), help="how many of the test suites to run")
    given = parser.parse_args(arguments)
    import hypothesis
    import pytest
    import torch._dynamo
    import torch.export

    from tests.mutants.mutations import MODULES, mutants

    assert hypothesis
    assert pytest
    assert torch
    waiting = [m for module in MODULES for m in mutants(module) if given.only in f"{m.module} {m.name}"]
    started, survivors = time.perf_counter(), []
    with ThreadPoolExecutor(given.processes) as pool:
        for mutant, killed in zip(
            waiting,
            pool.map(lambda m: is_killed(m.module, m.source, TESTS[: given.suites]), waiting),
            strict=True,
        ):
            label = f"{mutant.module}: {mutant.name}"
            sys.stdout.write(
                f"{time.perf_counter() - started:6.0f} s  {'killed  ' if killed else 'SURVIVES'}  {label}\n"
            )
            sys.stdout.flush()
            survivors += [] if killed else [label]
    unexplained = [s for s in survivors if s not in explained()]
    sys.stdout.write(
        f"{len(waiting)} mutants, {len(survivors)} survive, {len(unexplained)} of them unexplained\n"
    )
    return 1 if unexplained else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
