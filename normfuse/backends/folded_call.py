"""Calling a compiled graph with its folded weights, checked at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from normfuse.backends.doubts import doubt
from normfuse.errors import is_strict
from normfuse.folding import BrokenPremiseError, Fact, Slots
from normfuse.warn import warn_user

__all__ = ["FoldedCall"]

log = logging.getLogger("normfuse")


class FoldedCall:
    """``compiled(*inputs, *folded weights, *constants)``.

    If a weight cannot be folded again, the original graph answers this call, with one warning. It answers as
    well where the weights are such that the graph would be rewritten in another way, and ``compile_again``
    has the next call compile it so.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        slots: Slots,
        constants: Sequence[torch.Tensor],
        original: GraphModule,
        compile_again: Callable[[], None],
    ) -> None:
        self._compiled = compiled
        self._slots = slots
        self._constants = tuple(constants)
        self._original = original
        self._compile_again = compile_again
        self._warned = False
        self._doubted: frozenset[Fact] = frozenset()

    def __call__(self, *inputs: Any) -> Any:
        try:
            folded = self._slots.tensors(inputs)
        except BrokenPremiseError as reason:
            if self._doubted != reason.facts:
                self._doubted = reason.facts
                log.info("compiled again at the next call, for other weights: %s", reason)
                doubt(self._original, reason)
            self._compile_again()
            return self._original(*inputs)
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
