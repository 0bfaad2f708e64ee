"""Run the tests against every mutant: ``make mutants``.

PyTorch is imported once; each mutant lives in a forked process in which one module of normfuse has another
source. A mutant is killed when a test fails. What survives has to be explained in ``survivors.json``. Who
was killed stays so when the command is stopped and called again; survivors are tried anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.mutants.mutations import MODULES, Mutant, mutants
from tests.mutants.survey import Chosen, Remaining, Survey, touching

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).parent / "survivors.json"
TESTS = (
    ["tests/analysis", "tests/patterns"],
    ["tests/fuzz/test_corpus.py", "tests/fuzz/test_fuzz.py", "-k", "holds"],
    [
        "tests/backends/test_premises.py",
        "tests/programs/test_conditions.py",
        "tests/passes",
        "-k",
        "not compil",
        "-m",
        "not gpu",
    ],
    [
        "tests/lowering",
        "tests/freezing",
        "tests/backends/test_contents.py",
        "tests/backends/test_staleness.py",
    ],
)
"""What decides in the end; before them run the tests that are known to call the mutant's function."""
SECONDS = 1800

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


def _child(module: str, source: str, suites: Any, first: Any) -> None:
    _quiet()
    _forget()
    sys.meta_path.insert(0, _Other(f"normfuse.{module}", source))
    files = sorted({name.split("::")[0] for name in first})
    if files and _run(files, Chosen(first)):
        os._exit(1)
    os._exit(1 if any(_run(suite, Remaining(first)) for suite in suites) else 0)


def _quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _forget() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in ("normfuse", "tests")]:
        del sys.modules[name]


def _run(arguments: list[str], *plugins: object) -> bool:
    """Whether a test fails."""
    import pytest

    words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    return pytest.main(words, plugins=list(plugins)) not in (0, 5)


def _survey(target: Path) -> None:
    _quiet()
    _forget()
    survey = Survey(target)
    os._exit(1 if any(_run(suite, survey) for suite in TESTS) else 0)


def _finished(target: Any, arguments: tuple[Any, ...], seconds: float) -> int | None:
    """The exit code of a process of its own; None where it had to be stopped."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join(seconds)
    if not process.is_alive():
        return process.exitcode
    process.kill()
    process.join()
    return None


def is_killed(
    module: str, source: str, suites: Any = TESTS, seconds: float = SECONDS, first: Any = ()
) -> bool:
    """Whether a test fails (or hangs) with this source of the module; ``first`` are tests to begin with."""
    return _finished(_child, (module, source, suites, first), seconds) != 0


def explained() -> dict[str, str]:
    """Mutants that no test can kill, and why each is the same program."""
    found: dict[str, str] = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    return found


def _outcome(suites: Any, folder: Path, mutant: Mutant) -> bool:
    digest = hashlib.sha256(f"{mutant.module}\0{mutant.source}".encode()).hexdigest()[:16]
    grave = folder / f"killed_{digest}"
    if grave.exists():
        return True
    first = touching(folder / "survey.json", mutant.module, mutant.name.split()[0])
    killed = is_killed(mutant.module, mutant.source, suites, first=first)
    if killed:
        grave.write_text(f"{mutant.module}: {mutant.name}\n", encoding="utf-8")
    return killed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the mutants to run")
    parser.add_argument("--skip-explained", action="store_true", help="leave out those that may survive")
    parser.add_argument("--suites", type=int, default=len(TESTS), help="how many of the test suites to run")
    parser.add_argument("--folder", type=Path, default=Path("build/mutants"))
    given = parser.parse_args(arguments)
    import hypothesis
    import torch._dynamo
    import torch.export

    assert hypothesis
    assert torch
    given.folder.mkdir(parents=True, exist_ok=True)
    survey = given.folder / "survey.json"
    if not survey.exists() and _finished(_survey, (survey,), SECONDS) != 0:
        raise SystemExit("a test fails without any mutant: run the tests first")
    waiting = [m for module in MODULES for m in mutants(module) if given.only in f"{m.module}: {m.name}"]
    if given.skip_explained:
        waiting = [m for m in waiting if f"{m.module}: {m.name}" not in explained()]
    started, survivors = time.perf_counter(), []
    outcome = partial(_outcome, TESTS[: given.suites], given.folder)
    with ThreadPoolExecutor(given.processes) as pool:
        for mutant, killed in zip(waiting, pool.map(outcome, waiting), strict=True):
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
