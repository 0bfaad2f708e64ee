"""Warnings that point at the user's line, through whatever of ours and of PyTorch lies in between."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

__all__ = ["warn_user"]

_PACKAGE = Path(__file__).parent


def warn_user(message: str) -> None:
    """Warn at the innermost line that belongs neither to normfuse nor to PyTorch."""
    frame = _user_frame(sys._getframe(1))
    if frame is None:
        warnings.warn(message, stacklevel=2)
        return
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _user_frame(frame: FrameType | None) -> FrameType | None:
    inside = tuple(f"{folder}/" for folder in (_PACKAGE, _torch_folder()))
    while frame is not None and _is_internal(frame.f_code.co_filename, inside):
        frame = frame.f_back
    return frame


def _is_internal(filename: str, inside: tuple[str, ...]) -> bool:
    """Whether a frame is ours, PyTorch's, the standard library's context managers', or generated."""
    return filename.startswith((*inside, "<")) or filename.endswith(("/contextlib.py", "/functools.py"))


def _torch_folder() -> Path:
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
