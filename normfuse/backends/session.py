"""The report of the latest ``torch.compile`` in this process, over all graphs it consists of."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from normfuse.report import Report

__all__ = ["last_report", "record"]

_lock = threading.Lock()
_latest: Report | None = None


def record(report: Report) -> None:
    """Add the report of one graph; a graph that continues a broken one joins the report before it."""
    global _latest
    with _lock:
        if _latest is None or not _is_continuation():
            _latest = Report(target=report.target)
        _latest.merge(report)


def last_report() -> Report:
    """What the latest ``torch.compile`` with this backend found and did; empty before the first one."""
    with _lock:
        return _latest if _latest is not None else Report()


def _is_continuation() -> bool:
    """Whether Dynamo is compiling the rest of a function behind a graph break."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_locals.get("code") if frame.f_code.co_name in ("_compile", "compile_inner") else None
        if code is not None:
            return str(getattr(code, "co_name", "")).startswith("torch_dynamo_resume_in")
        frame = frame.f_back
    return False
