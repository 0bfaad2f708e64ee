"""The report of the latest ``torch.compile`` in this process, over all graphs it consists of."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch

from normfuse.report import Report

__all__ = ["last_report", "record"]

#: A function, and the module that it was compiled for: blocks of several widths share one function.
_Key = tuple[CodeType | None, int]

_lock = threading.Lock()
#: What ``torch.compile`` returned, for the graphs that came in last.
_compiled: weakref.ref[Any] | None = None
#: The latest report of each function that it consists of: the model's, nested ones, and their rests.
_reports: dict[_Key, Report] = {}


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

    It covers every graph of the model: a function that was compiled several times for one module, for
    other shapes say, counts once, as it was compiled last.
    """
    with _lock:
        merged = Report()
        for report in _reports.values():
            merged.target = report.target
            merged.merge(report)
        return merged


def _compiling() -> tuple[Any, _Key]:
    """The outermost compiled callable that is running, and the function that Dynamo is compiling for it."""
    owner, function, whose = None, None, 0
    for frame in _stack():
        name = frame.f_code.co_name
        if function is None and name in ("_compile", "compile_inner"):
            function = frame.f_locals.get("code")
        if name == "_compile" and not whose:
            whose = _module_of(function, frame.f_locals.get("locals"))
        if name in ("compile_wrapper", "_fn") and frame.f_code.co_filename.endswith("eval_frame.py"):
            owner = frame.f_locals.get("self", owner)
    return owner, (function if isinstance(function, CodeType) else None, whose)


def _module_of(function: Any, values: Any) -> int:
    """Identity of the module whose method a function is; 0 for none."""
    if not isinstance(function, CodeType) or not function.co_argcount or not isinstance(values, dict):
        return 0
    first = values.get(function.co_varnames[0])
    return id(first) if isinstance(first, torch.nn.Module) else 0


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
