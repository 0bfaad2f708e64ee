"""Which module holds a weight, found through the place where Dynamo read it.

Compiled code outlives the model it was made for; folded weights must not. They are released when
the module that holds their source is.
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any

import torch
from torch.fx import Node

__all__ = ["Owners", "compiling_scope"]


class Owners:
    """Looks up modules in the variables of the function that Dynamo is compiling."""

    def __init__(self) -> None:
        self._scope = compiling_scope()

    def of(self, placeholder: Node) -> weakref.ref[torch.nn.Module] | None:
        """The module that holds a parameter or buffer, or None when it cannot be told."""
        source = getattr(placeholder, "_dynamo_source", None)
        holder = getattr(getattr(source, "base", None), "base", None)
        if holder is None or self._scope is None:
            return None
        try:
            module = eval(_text(holder), dict(self._scope))  # an expression that Dynamo made
        except Exception:
            return None
        return weakref.ref(module) if isinstance(module, torch.nn.Module) else None


def _text(source: Any) -> str:
    return str(source.name() if callable(source.name) else source.name)


def compiling_scope() -> dict[str, Any] | None:
    """The local and global variables of the function that Dynamo is compiling, as ``L`` and ``G``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        output: Any = frame.f_locals.get("self")
        if hasattr(output, "local_scope") and hasattr(output, "global_scope"):
            assert output is not None
            return {"L": output.local_scope, "G": output.global_scope}
        frame = frame.f_back
    return None
