"""Calling a compiled graph with its folded weights, checked at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from normfuse.folding import Slots
from normfuse.warn import warn_user

__all__ = ["FoldedCall", "is_strict"]

log = logging.getLogger("normfuse")


def is_strict() -> bool:
    """Whether ``NORMFUSE_STRICT=1`` asks for an exception where a user would get a fallback."""
    import os

    return os.environ.get("NORMFUSE_STRICT", "0") not in ("", "0")


class FoldedCall:
    """``compiled(*inputs, *folded weights, *constants)``.

    If a weight cannot be folded again, the original graph answers this call, with one warning.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        slots: Slots,
        constants: Sequence[torch.Tensor],
        original: GraphModule,
    ) -> None:
        self._compiled = compiled
        self._slots = slots
        self._constants = tuple(constants)
        self._original = original
        self._warned = False

    def __call__(self, *inputs: Any) -> Any:
        try:
            folded = self._slots.tensors(inputs)
        except Exception as error:
            return self._fall_back(error, inputs)
        return self._compiled(*inputs, *folded, *self._constants)

    def _fall_back(self, error: Exception, inputs: Sequence[Any]) -> Any:
        if is_strict():
            raise error
        if not self._warned:
            self._warned = True
            warn_user(f"normfuse could not fold a weight ({error}); the original graph runs instead")
            log.exception("refolding failed")
        return self._original(*inputs)
