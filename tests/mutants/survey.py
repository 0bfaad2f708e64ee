"""Which tests call which functions of the mutated modules, and how long each test takes.

A mutant is tried on the tests that call its function, quickest first. What a test reads from a cache that
another one filled is not seen; a mutant survives only when all tests have passed, so that costs time alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutants.mutations import MODULES, PACKAGE

__all__ = ["Chosen", "Remaining", "Survey", "touching"]


class Survey:
    """A plugin that writes, for each test, its seconds and the functions that it called."""

    def __init__(self, target: Path) -> None:
        self.target, self.tests = target, dict[str, Any]()
        self.modules = {str(PACKAGE / f"{name.replace('.', '/')}.py"): name for name in MODULES}
        self.called: set[CodeType] = set()

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.called.add(frame.f_code)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.called, started = set(), time.perf_counter()
        sys.setprofile(self._note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            names = [[self.modules.get(c.co_filename), c.co_name] for c in self.called]
            self.tests[item.nodeid] = {
                "seconds": time.perf_counter() - started,
                "functions": sorted(f"{module}.{name}" for module, name in names if module),
            }

    def pytest_sessionfinish(self) -> None:
        self.target.write_text(json.dumps(self.tests), encoding="utf-8")


class Chosen:
    """A plugin that runs some of the collected tests, in the order given."""

    def __init__(self, names: Sequence[str]) -> None:
        self.place = {name: index for index, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.place), key=lambda item: self.place[item.nodeid]
        )


class Remaining:
    """A plugin that leaves out tests that have run already."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.names]


def touching(survey: Path, module: str, function: str) -> list[str]:
    """The tests that call a function, quickest first."""
    tests = json.loads(survey.read_text(encoding="utf-8"))
    found = [name for name, test in tests.items() if f"{module}.{function}" in test["functions"]]
    return sorted(found, key=lambda name: tests[name]["seconds"])
