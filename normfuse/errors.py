"""Errors that a caller may want to catch. Messages say what was wrong, where, and what to do."""

from __future__ import annotations

import os

__all__ = [
    "CaptureError",
    "ExpectationError",
    "InputError",
    "InvariantError",
    "NormfuseError",
    "OptionError",
    "UncapturableError",
    "VerificationError",
    "cause",
    "is_strict",
]


class NormfuseError(Exception):
    """Base class of everything that normfuse raises on purpose."""


class OptionError(NormfuseError, ValueError):
    """An option, target or rule that does not exist, or a value that it does not take."""


class InputError(NormfuseError, ValueError):
    """A model, program or example input that normfuse cannot work with."""


class CaptureError(NormfuseError):
    """The model could not be turned into a graph."""


class UncapturableError(CaptureError):
    """The graph does something that normfuse does not look into; it is left as it is."""


class ExpectationError(NormfuseError, AssertionError):
    """``normfuse.expect`` was not met: a kind of norm occurs more or less often than promised."""


class VerificationError(NormfuseError):
    """Two programs could not be compared, for example because their outputs differ in structure."""


class InvariantError(NormfuseError):
    """An internal promise was broken; the user's model falls back to Inductor."""


def cause(error: BaseException) -> str:
    """The kind of an error of somebody else's code, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_strict() -> bool:
    """Whether ``NORMFUSE_STRICT=1`` asks for checks of every stage, and exceptions in place of fallbacks."""
    return os.environ.get("NORMFUSE_STRICT", "0") not in ("", "0")
