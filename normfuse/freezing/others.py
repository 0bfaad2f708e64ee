"""One graph for the weights of several models: of one class, or of layers that are compiled one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from normfuse.folding import is_refilled
from normfuse.folding.frozen import FrozenWeights

__all__ = ["Others"]

#: For so many models a graph is compiled at most. With more, weights count as weights that change.
_MOST = 64


class _Call(Protocol):
    @property
    def is_released(self) -> bool: ...

    def __call__(self, *inputs: Any) -> Any: ...


class Others:
    """What answers where a graph that holds the weights ``own`` is called with other weights.

    ``make`` compiles it for the weights among some inputs and gives None where it cannot. It is asked when
    weights come for the second time, since those of a single call are not worth it; until then, and while
    another thread compiles, the ``original`` graph answers.
    """

    def __init__(
        self,
        own: FrozenWeights,
        original: Callable[..., Any],
        make: Callable[[Sequence[Any]], _Call | None],
    ) -> None:
        self._own, self._original, self._make = own, original, make
        self._own_key = tuple(id(source()) for source in own.sources)
        self._seen = {self._own_key}
        self._made: dict[tuple[int, ...], _Call] = {}
        self._compiling = threading.Lock()

    def call_for(self, inputs: Sequence[Any]) -> Callable[..., Any] | None:
        """What answers a call with these inputs; None where weights that were there before have changed."""
        sources = [inputs[p] for p in self._own.places]
        key = tuple(map(id, sources))
        known = self._made.get(key)
        if known is not None and not known.is_released:
            return known
        if key == self._own_key or not self._may_hold(sources):
            return None
        if key not in self._seen:
            self._seen.add(key)
            return self._original if len(self._seen) <= _MOST else None
        return self._compiled(key, inputs)

    def _may_hold(self, sources: Sequence[Any]) -> bool:
        """Whether the graph's own weights live, and these are tensors like them that can be watched."""
        return self._own.compiled is not None and (
            all(type(s) in (torch.Tensor, torch.nn.Parameter) for s in sources)
            and not any(s.is_inference() or is_refilled(s) for s in sources)
            and self._own.can_serve(sources)
        )

    def _compiled(self, key: tuple[int, ...], inputs: Sequence[Any]) -> Callable[..., Any] | None:
        if not self._compiling.acquire(blocking=False):
            return self._original
        try:
            made = self._make(inputs)
        finally:
            self._compiling.release()
        if made is not None:
            self._made = {**{k: one for k, one in self._made.items() if not one.is_released}, key: made}
        return made
