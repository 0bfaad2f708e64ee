"""The report of the latest ``torch.compile`` in this process, over all graphs it consists of."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from normfuse.report import Report

__all__ = ["last_report", "record"]

_lock = threading.Lock()
#: What ``torch.compile`` returned, for the graphs that came in last.
_compiled: weakref.ref[Any] | None = None
#: The latest report of each function that it consists of: the model's, nested ones, and their rests.
_reports: dict[CodeType | None, Report] = {}


def record(report: Report) -> None:
    """Keep the report of one graph; a function that is compiled once more replaces its report."""
    global _compiled
    owner, function = _compiling()
    with _lock:
        if owner is None or _compiled is None or _compiled() is not owner:
            _reports.clear()
            _compiled = None if owner is None else weakref.ref(owner)
        _reports[function] = report


def last_report() -> Report:
    """What the latest ``torch.compile`` with this backend found and did; empty before the first one.

    It covers every graph of the model: a function that was compiled several times, for other shapes
    say, counts once, as it was compiled last.
    """
    with _lock:
        merged = Report()
        for report in _reports.values():
            merged.target = report.target
            merged.merge(report)
        return merged


def _compiling() -> tuple[Any, CodeType | None]:
    """The outermost compiled callable that is running, and the function that Dynamo is compiling for it."""
    owner, function = None, None
    for frame in _stack():
        name = frame.f_code.co_name
        if function is None and name in ("_compile", "compile_inner"):
            function = frame.f_locals.get("code")
        if name in ("compile_wrapper", "_fn") and frame.f_code.co_filename.endswith("eval_frame.py"):
            owner = frame.f_locals.get("self", owner)
    return owner, function if isinstance(function, CodeType) else None


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
