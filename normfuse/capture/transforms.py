"""Stretches of a graph that run under a ``torch.func`` transformation, whose values ATen cannot speak of."""

from __future__ import annotations

import torch
from torch.fx import Node

__all__ = ["Transforms"]

_MODULES = ("torch._C._functorch", "torch._functorch")


class Transforms:
    """Follows how deep a graph is inside of ``vmap``, ``grad`` and the like.

    ``hides_numbers`` says whether anything in there computes with floating numbers: a norm could.
    """

    def __init__(self) -> None:
        self._depth = 0
        self.hides_numbers = False

    def covers(self, node: Node) -> bool:
        """Whether a call belongs to a transformation, given all calls before it."""
        target, value = node.target, node.meta.get("example_value")
        name = getattr(target, "__name__", str(target))
        own = (getattr(target, "__module__", None) or "").startswith(_MODULES)
        if own and name.endswith("_increment_nesting"):
            self._depth += 1
        inside = own or self._depth > 0
        if own and name.endswith("_decrement_nesting"):
            self._depth -= 1
        is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        self.hides_numbers = self.hides_numbers or (self._depth > 0 and is_floating)
        return inside
