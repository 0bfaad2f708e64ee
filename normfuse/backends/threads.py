"""What other threads are doing with compiled code, which may be removed only while nobody looks it up."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

from torch._dynamo import eval_frame

__all__ = ["is_looked_up_elsewhere"]

_PACKAGE = Path(__file__).parents[1]
#: Where a thread is that runs compiled code, whose guards it has been through.
_RUNS = {str(_PACKAGE / "freezing" / "call.py"), str(_PACKAGE / "backends" / "folded_call.py")}


def is_looked_up_elsewhere() -> bool:
    """Whether another thread may be checking the guards of compiled code, or compiling some.

    Dynamo frees what it has compiled at once, also what another thread is reading.
    """
    own = threading.get_ident()
    return any(_may_look_up(frame) for thread, frame in sys._current_frames().items() if thread != own)


def _may_look_up(frame: FrameType | None) -> bool:
    """Whether the innermost call that concerns compiled code is Dynamo's, and not ours."""
    while frame is not None:
        if frame.f_code.co_filename in _RUNS:
            return False
        if frame.f_code.co_filename == eval_frame.__file__:
            return True
        frame = frame.f_back
    return False
