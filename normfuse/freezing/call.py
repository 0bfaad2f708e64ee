"""Calling a graph that was compiled with its weights in it, which are checked at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from normfuse.folding.frozen import FrozenWeights
from normfuse.folding.store import LOCK
from normfuse.freezing.steadiness import note_change
from normfuse.warn import warn_user

__all__ = ["FrozenCall"]

log = logging.getLogger("normfuse")


class FrozenCall:
    """``compiled(*the inputs at these places)``, as long as the weights are those that it holds.

    Where they are not, the original graph answers, and ``compile_again`` has the next call compile it for the
    weights as they are then.
    """

    def __init__(
        self,
        frozen: FrozenWeights,
        places: Sequence[int],
        original: GraphModule,
        compile_again: Callable[[], None],
    ) -> None:
        self._frozen = frozen
        self._places = tuple(places)
        self._original = original
        self._compile_again = compile_again
        self._is_noted = False

    def __call__(self, *inputs: Any) -> Any:
        frozen = self._frozen
        compiled = frozen.compiled
        if compiled is not None and frozen.hold_for(inputs):
            return compiled(*[inputs[p] for p in self._places])
        if compiled is None or not frozen.is_unsettled:
            self._changed(inputs)
        return self._original(*inputs)

    def _changed(self, inputs: Sequence[Any]) -> None:
        """Note a change once, whichever threads see it, and however often this is called after it."""
        with LOCK:
            if not self._is_noted:
                self._is_noted = True
                self._note(inputs)
        self._compile_again()

    def _note(self, inputs: Sequence[Any]) -> None:
        weights = [inputs[p] for p in self._frozen.places]
        reason = note_change(self._frozen.graph, weights, self._frozen.calls)
        self._frozen.release()
        log.info("compiled again at the next call, for other weights")
        if reason:
            warn_user(f"normfuse compiles a graph without its weights from now on: {reason}")
