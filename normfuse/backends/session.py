"""The reports of what ``torch.compile`` made in this process, over all graphs that a model consists of."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import torch

from normfuse.errors import InputError
from normfuse.report import Report

__all__ = ["last_report", "record"]

#: A function, and the module that it was compiled for: blocks of several widths share one function.
_Key = tuple[CodeType | None, int]

_lock = threading.Lock()

#: The latest report of each function that a model consists of: its own, nested ones, and their rests.
_Graphs = dict[_Key, Report]
#: By what ``torch.compile`` keeps for each result of its.
_reports: weakref.WeakKeyDictionary[Any, _Graphs] = weakref.WeakKeyDictionary()
#: Those that came in last.
_latest: tuple[weakref.ref[Any] | None, _Graphs] = (None, {})

_MISSING = "{} of {} compiled modules have no graph of their own: they share that of another, or did not run"


def record(report: Report) -> None:
    """Keep the report of one graph; a function that is compiled once more replaces its report."""
    global _latest
    owner, function = _compiling()
    with _lock:
        if owner is None:
            _latest = (None, {})
        elif _latest[0] is None or _latest[0]() is not owner:
            _latest = (weakref.ref(owner), _reports.setdefault(owner, {}))
        _latest[1][function] = report


def last_report(compiled: Callable[..., Any] | None = None) -> Report:
    """What ``torch.compile`` with this backend found and did; empty before the first call.

    It covers every graph of the model: a function that was compiled several times for one module, for
    other shapes say, counts once, as it was compiled last.

    Args:
        compiled: what ``torch.compile`` returned, or a module that was compiled in place or has parts that
            were. Without it: whatever was compiled last in this process.

    Raises:
        InputError: for something that was never compiled.
    """
    if compiled is None:
        with _lock:
            return _merged(_latest[1])
    contexts = _contexts_of(compiled)
    if not contexts:
        raise InputError(
            f"this {type(compiled).__name__} is not compiled; pass what torch.compile returned, or a module "
            "on which .compile() was called"
        )
    with _lock:
        held = [_reports[context] for context in contexts if context in _reports]
    report = _merged(*held)
    if 0 < len(held) < len(contexts):
        report.notes.append(_MISSING.format(len(contexts) - len(held), len(contexts)))
    return report


def _merged(*held: _Graphs) -> Report:
    merged = Report()
    for graphs in held:
        for report in graphs.values():
            merged.target = report.target
            merged.merge(report)
    return merged


def _contexts_of(compiled: Any) -> list[Any]:
    """What Dynamo calls the compiled functions of a model by."""
    if not isinstance(compiled, torch.nn.Module):
        found = _context(compiled)
        return [] if found is None else [found]
    if hasattr(compiled, "dynamo_ctx"):
        return [compiled.dynamo_ctx]
    parts = [module.__dict__.get("_compiled_call_impl") for module in compiled.modules()]
    contexts = [getattr(m, "dynamo_ctx", None) for m in compiled.modules()] + [_context(p) for p in parts]
    return list({id(c): c for c in contexts if c is not None}.values())


def _context(function: Any) -> Any:
    """The context that the wrapper around a compiled function refers to."""
    function = getattr(function, "__func__", function)
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not hasattr(function, "_torchdynamo_orig_callable"):
        return None
    return dict(zip(code.co_freevars, [c.cell_contents for c in cells or ()], strict=True)).get("self")


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
