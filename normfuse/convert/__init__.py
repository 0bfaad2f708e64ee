"""Models with trainable norms of :mod:`normfuse.nn` in the place of LayerNorm and RMSNorm."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from normfuse.convert.calibrate import calibrate
from normfuse.convert.calibration import Calibration
from normfuse.convert.conversion import Conversion, convert

__all__ = ["Calibration", "Conversion", "calibrate", "convert"]


class _CallablePackage(ModuleType):
    """``normfuse.convert`` is the package once a submodule was imported, and has to work as the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Conversion:
        return convert(*args, **kwargs)


#: What ``help``, ``inspect`` and editors show.
__signature__ = inspect.signature(convert)
__doc__ = f"{__doc__}\n\n{inspect.signature(convert)}\n\n{inspect.getdoc(convert)}"


sys.modules[__name__].__class__ = _CallablePackage
