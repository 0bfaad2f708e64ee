"""Calling a graph that was compiled with its weights in it, which are checked at every call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from normfuse.errors import cause, is_strict
from normfuse.folding.frozen import FrozenWeights
from normfuse.folding.store import LOCK
from normfuse.freezing.others import Others
from normfuse.freezing.steadiness import give_up, note_change
from normfuse.warn import warn_user

__all__ = ["FrozenCall"]

log = logging.getLogger("normfuse")


class FrozenCall:
    """``compiled(*the inputs at these places)``, as long as the weights are those that it holds.

    Where they are not, the original graph answers, and ``compile_again`` has the next call compile it for the
    weights as they are then. It answers as well where what Inductor compiled for constant weights fails, as
    some of its kernels do for some dtypes; what the graph has ``written`` to by then is put back, if that
    happens at the first call. Where ``others`` are given, they answer for other models' weights.
    """

    def __init__(
        self,
        frozen: FrozenWeights,
        places: Sequence[int],
        original: GraphModule,
        compile_again: Callable[[], None],
        written: Sequence[int] = (),
        others: Others | None = None,
    ) -> None:
        self._frozen = frozen
        self._places = tuple(places)
        self._original = original
        self._compile_again = compile_again
        self._written = tuple(written)
        self._others = others
        self._first, self._own = frozen.places[0], id(frozen.sources[0]())
        self._has_run, self._is_noted = False, False

    @property
    def is_released(self) -> bool:
        """Whether the weights are gone, or have changed."""
        return self._frozen.compiled is None

    def __call__(self, *inputs: Any) -> Any:
        frozen = self._frozen
        compiled = frozen.compiled
        if compiled is not None and id(inputs[self._first]) == self._own and frozen.hold_for(inputs):
            if self._has_run:
                return compiled(*[inputs[p] for p in self._places])
            return self._run_first(compiled, inputs)
        if self._others is not None and (other := self._others.call_for(inputs)) is not None:
            return other(*inputs)
        if compiled is None or not frozen.is_unsettled:
            self._changed(inputs)
        return self._original(*inputs)

    def _run_first(self, compiled: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        with torch.no_grad():
            before = [(inputs[p], inputs[p].clone()) for p in self._written]
        try:
            found = compiled(*[inputs[p] for p in self._places])
        except Exception as error:
            with torch.no_grad():
                for value, held in before:
                    value.copy_(held)
            found = self._original(*inputs)  # which raises the error of inputs that are wrong
            self._failed(error, inputs)
            return found
        self._has_run = True
        return found

    def _failed(self, error: Exception, inputs: Sequence[Any]) -> None:
        """Never try again: the next call compiles the graph without its weights."""
        if is_strict():
            raise error
        with LOCK:
            self._is_noted = True
            reason = f"Inductor's code for them fails ({cause(error)})"
            give_up(self._frozen.graph, self._weights(inputs), reason)
            self._leave(reason)
        self._compile_again()

    def _changed(self, inputs: Sequence[Any]) -> None:
        """Note a change once, whichever threads see it, and however often this is called after it."""
        with LOCK:
            if not self._is_noted:
                self._is_noted = True
                log.info("compiled again at the next call, for other weights")
                self._leave(note_change(self._frozen.graph, self._weights(inputs), self._frozen.calls))
        self._compile_again()

    def _leave(self, reason: str) -> None:
        self._frozen.release()
        if reason:
            warn_user(f"normfuse compiles a graph without its weights from now on: {reason}")

    def _weights(self, inputs: Sequence[Any]) -> list[Any]:
        return [inputs[p] for p in self._frozen.places]
