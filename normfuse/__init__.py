"""normfuse: every normalization in its cheapest form that is provably the same function.

torch.compile(model, backend="normfuse")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from normfuse.errors import (
    CaptureError,
    ExpectationError,
    InputError,
    InvariantError,
    NormfuseError,
    OptionError,
    VerificationError,
)

if TYPE_CHECKING:
    from normfuse import nn as nn
    from normfuse.backends.entry import normfuse_backend
    from normfuse.backends.explain import explain
    from normfuse.backends.session import last_report
    from normfuse.benchmark import BenchResult, bench
    from normfuse.checkpoint import RewrittenFolder, explain_folder, load_checkpoint, rewrite_folder
    from normfuse.convert import Calibration, Conversion, calibrate, convert
    from normfuse.folding import invalidate
    from normfuse.in_place import Applied, apply
    from normfuse.report import Refusal, Report, Site
    from normfuse.rewriting import Rewritten, rewrite
    from normfuse.verify import Equivalence, verify

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "BenchResult",
    "Calibration",
    "CaptureError",
    "Conversion",
    "Equivalence",
    "ExpectationError",
    "InputError",
    "InvariantError",
    "NormfuseError",
    "OptionError",
    "Refusal",
    "Report",
    "Rewritten",
    "RewrittenFolder",
    "Site",
    "VerificationError",
    "apply",
    "bench",
    "calibrate",
    "convert",
    "explain",
    "explain_folder",
    "invalidate",
    "last_report",
    "load_checkpoint",
    "normfuse_backend",
    "rewrite",
    "rewrite_folder",
    "verify",
]

_HOMES = {
    "Applied": "normfuse.in_place",
    "BenchResult": "normfuse.benchmark",
    "Calibration": "normfuse.convert",
    "Conversion": "normfuse.convert",
    "Equivalence": "normfuse.verify",
    "Refusal": "normfuse.report",
    "Report": "normfuse.report",
    "Rewritten": "normfuse.rewriting",
    "RewrittenFolder": "normfuse.checkpoint",
    "Site": "normfuse.report",
    "apply": "normfuse.in_place",
    "bench": "normfuse.benchmark",
    "calibrate": "normfuse.convert",
    "convert": "normfuse.convert",
    "explain": "normfuse.backends.explain",
    "explain_folder": "normfuse.checkpoint",
    "invalidate": "normfuse.folding",
    "last_report": "normfuse.backends.session",
    "load_checkpoint": "normfuse.checkpoint",
    "normfuse_backend": "normfuse.backends.entry",
    "rewrite": "normfuse.rewriting",
    "rewrite_folder": "normfuse.checkpoint",
    "verify": "normfuse.verify",
}
#: Packages that ``import normfuse`` gives as attributes, imported when they are asked for.
_PACKAGES = ("nn",)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"normfuse.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'normfuse' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
