"""A float64 oracle that judges whether a rewritten program is as accurate as the original."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from normfuse.verify.compare import error_ratio
from normfuse.verify.equivalence import Equivalence, LeafError
from normfuse.verify.oracle import run_wide
from normfuse.verify.verify import verify
from normfuse.verify.widen import widen

__all__ = ["Equivalence", "LeafError", "error_ratio", "run_wide", "verify", "widen"]


class _CallablePackage(ModuleType):
    """``normfuse.verify`` is the package once a submodule was imported, and has to work as the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Equivalence:
        return verify(*args, **kwargs)


#: What ``help``, ``inspect`` and editors show.
__signature__ = inspect.signature(verify)
__doc__ = f"{__doc__}\n\n{inspect.signature(verify)}\n\n{inspect.getdoc(verify)}"


sys.modules[__name__].__class__ = _CallablePackage
