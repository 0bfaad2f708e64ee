"""The report of the latest ``torch.compile`` in this process, over all graphs it consists of."""

from __future__ import annotations

import sys
import threading
from types import CodeType, FrameType

from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler

from normfuse.report import Report

__all__ = ["last_report", "record"]

_lock = threading.Lock()
_latest: Report | None = None
#: The functions whose graphs the latest report holds.
_functions: set[CodeType | None] = set()
#: Whether Dynamo has begun with a function of the user's since the last graph came in.
_begun = True


def record(report: Report) -> None:
    """Add the report of one graph; a graph that continues a broken one joins the report before it.

    A function that is compiled once more starts a new report.
    """
    global _begun, _latest
    function = _compiled_function()
    with _lock:
        if _listen() or _latest is None or _begun or function in _functions:
            _latest = Report(target=report.target)
            _functions.clear()
        _begun = False
        _functions.add(function)
        _latest.merge(report)


def last_report() -> Report:
    """What the latest ``torch.compile`` with this backend found and did; empty before the first one."""
    with _lock:
        return _latest if _latest is not None else Report()


def _note_beginning(args: CallbackArgs) -> None:
    """A function may break before its first operator; its beginning is known from Dynamo alone."""
    global _begun
    if args.callback_trigger is CallbackTrigger.DYNAMO and not _continues(_compiled_function()):
        _begun = True


def _listen() -> bool:
    """Ask Dynamo to tell of beginnings; False when it does so already. ``torch._dynamo.reset`` forgets it."""
    if _note_beginning in callback_handler.start_callbacks:
        return False
    callback_handler.register_start_callback(_note_beginning)
    return True


def _continues(function: CodeType | None) -> bool:
    """Whether a function is the rest of another one behind a graph break."""
    return function is not None and function.co_name.startswith("torch_dynamo_resume_in")


def _compiled_function() -> CodeType | None:
    """The function that Dynamo is compiling, found on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_locals.get("code") if frame.f_code.co_name in ("_compile", "compile_inner") else None
        if isinstance(code, CodeType):
            return code
        frame = frame.f_back
    return None
