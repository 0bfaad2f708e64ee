"""Weights that a compiled graph holds as constants, watched like those that are folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from normfuse.folding import store
from normfuse.folding.known import NOTHING, Known, takes_turns
from normfuse.folding.store import LOCK, Owner, Reader

__all__ = ["FrozenWeights", "living_frozen"]


class FrozenWeights(Reader):
    """The weights of one compiled graph, at these places among its inputs, as they were when it was compiled.

    ``compiled`` is what was compiled with them: a call of it is right as long as :meth:`hold_for` says so.
    ``graph`` is its name, ``rows`` the most rows of data that a product reads, ``bytes`` what the constants
    take beside the originals. ``is_shareable`` says whether another graph can use all of these constants,
    which are in ``packed`` or the originals; ``held`` is what this one may use of others.
    """

    def __init__(
        self,
        graph: str,
        places: Sequence[int],
        sources: Sequence[torch.Tensor],
        owners: Sequence[Owner] = (),
        watched: Mapping[int, Owner | None] | None = None,
    ) -> None:
        self.places = tuple(places)
        self.compiled: Callable[..., Any] | None = None
        self.graph = graph
        self.rows, self.bytes, self.calls = 0, 0, 0
        self.is_shareable = False
        self.packed: dict[tuple[int, int], torch.Tensor] = {}
        self.held: dict[tuple[int, int], torch.Tensor] | None = None
        self._known = NOTHING
        super().__init__(sources, owners, watched)

    def hold_for(self, inputs: Sequence[Any]) -> bool:
        """Whether the graph was compiled with the weights among these inputs, and they are unchanged."""
        known = self._known
        self.calls += 1
        if known.epoch != store.epoch or not known.holds_for(inputs, self.calls):
            return self._look_again(inputs)
        if takes_turns(id(inputs[self.places[0]]), self.number):
            return known.looks_unchanged() or self._look_again(inputs)
        return True

    def _look_again(self, inputs: Sequence[Any]) -> bool:
        with LOCK:
            sources = [inputs[p] for p in self.places]
            if self.is_released or not self.is_current(sources):
                return False
            checks = [
                (place, known, *stamp[:5])
                for place, known, stamp in zip(self.places, self.sources, self.stamps, strict=True)
            ]
            self._known = Known(store.epoch, checks, self.watches)
            return True

    def release(self) -> None:
        """Give the memory back: the model is gone, or another graph holds its weights now."""
        self.compiled, self._known, self.packed = None, NOTHING, {}
        super().release()

    def shares(self, other: FrozenWeights) -> bool:
        """Whether both hold weights that lie in the same memory."""
        return not {s._cdata for s in self._storages}.isdisjoint(s._cdata for s in other._storages)


def living_frozen() -> list[FrozenWeights]:
    """All that hold a compiled graph."""
    return [f for f in store.readers() if isinstance(f, FrozenWeights) and f.compiled is not None]
