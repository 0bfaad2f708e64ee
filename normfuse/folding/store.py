"""Folded weights that are never stale.

Each call compares the sources with what was folded: memory, version counter, shape, dtype and
device. When something changed, the folded tensor is computed again *into the same memory*, so
compiled code and CUDA graphs that hold its address stay right. Writes through ``.data`` leave no
trace in a version counter and need :func:`invalidate`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from normfuse.folding.recipe import Recipe
from normfuse.torch_compat import outside_tracing, storage_is_abandoned

__all__ = ["FoldedWeight", "Slot", "invalidate"]

_Identity = tuple[Any, ...]
_Owner = weakref.ref[torch.nn.Module]
_shared: WeakValueDictionary[tuple[str, _Identity], FoldedWeight] = WeakValueDictionary()
_alive: WeakSet[FoldedWeight] = WeakSet()
_lock = threading.RLock()


class _Stamp:
    """What one source looked like when it was folded; holds its memory, so an address is never reused."""

    __slots__ = ("address", "device", "dtype", "shape", "storage", "version")

    def __init__(self, source: torch.Tensor) -> None:
        self.storage = source.untyped_storage()
        self.address = source.data_ptr()
        self.version = source._version
        self.shape = source.shape
        self.dtype = source.dtype
        self.device = source.device

    def fits(self, source: torch.Tensor) -> bool:
        """Whether ``source`` is still the tensor that was folded, unchanged."""
        return bool(
            source._version == self.version
            and source.data_ptr() == self.address
            and source.dtype is self.dtype
            and source.shape == self.shape
            and source.device == self.device
        )


def _identity(sources: Sequence[torch.Tensor]) -> _Identity:
    return tuple((s.data_ptr(), s.shape, s.stride(), s.dtype, s.device) for s in sources)


class FoldedWeight:
    """One folded tensor and the state of the sources it was made of."""

    def __init__(
        self, recipe: Recipe, sources: Sequence[torch.Tensor], owners: Sequence[_Owner] = ()
    ) -> None:
        self.recipe = recipe
        self.refolds = 0
        self.tensor = recipe.compute(sources)
        self._stamps = [_Stamp(s) for s in sources]
        _alive.add(self)
        for owner in owners:
            if (module := owner()) is not None:
                weakref.finalize(module, _release, weakref.ref(self)).atexit = False

    def is_current(self, sources: Sequence[torch.Tensor]) -> bool:
        """Whether the sources are the ones that were folded, unchanged."""
        return bool(self._stamps) and all(map(_Stamp.fits, self._stamps, sources))

    def refold(self, sources: Sequence[torch.Tensor]) -> None:
        """Compute the tensor again, into the same memory."""
        stamps = [_Stamp(s) for s in sources]
        fresh = self.recipe.compute(sources)
        with outside_tracing():
            self.tensor.copy_(fresh)
        self._stamps = stamps
        self.refolds += 1

    def forget(self) -> None:
        """Make the next call fold again."""
        for stamp in self._stamps:
            stamp.version = -1

    def release(self) -> None:
        """Give the memory back: the model is gone."""
        self.tensor = torch.empty(0)
        self._stamps = []

    @property
    def is_released(self) -> bool:
        return not self._stamps

    def reads(self, storages: set[int]) -> bool:
        return any(s.storage._cdata in storages for s in self._stamps)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody but this object holds the memory of a source any more."""
        return any(storage_is_abandoned(s.storage) for s in self._stamps)


class Slot:
    """One folded input of one compiled graph.

    A graph may be called with the weights of several models of one class in turn; each has a
    folded tensor of its own, kept as long as its sources live.
    """

    def __init__(self, recipe: Recipe, positions: Sequence[int], owners: Sequence[_Owner] = ()) -> None:
        self.recipe = recipe
        self._owners = tuple(owners)
        self._positions = tuple(positions)
        self._current: FoldedWeight | None = None
        self._known: dict[_Identity, FoldedWeight] = {}

    def tensor(self, inputs: Sequence[Any]) -> torch.Tensor:
        """The folded tensor for the weights among these graph inputs."""
        sources = [inputs[p] for p in self._positions]
        current = self._current
        if current is not None and current.is_current(sources):
            return current.tensor
        with _lock:
            return self._find(sources).tensor

    def _find(self, sources: Sequence[torch.Tensor]) -> FoldedWeight:
        identity = _identity(sources)
        found = self._known.get(identity) or _shared.get((self.recipe.key, identity))
        if found is None or found.is_released:
            found = self._adopt(sources) or FoldedWeight(self.recipe, sources, self._take_owners())
        elif not found.is_current(sources):
            found.refold(sources)
        self._known[identity] = self._current = _shared[self.recipe.key, identity] = found
        return found

    def _take_owners(self) -> tuple[_Owner, ...]:
        """The modules of the weights that the graph was compiled with: they own the first folded tensor."""
        owners, self._owners = self._owners, ()
        return owners

    def _adopt(self, sources: Sequence[torch.Tensor]) -> FoldedWeight | None:
        """A folded tensor whose own sources are gone: its memory serves the new ones."""
        for identity, old in list(self._known.items()):
            if not (old.is_released or old.is_abandoned):
                continue
            del self._known[identity]
            _shared.pop((self.recipe.key, identity), None)
            if (
                not old.is_released
                and old.tensor.shape == _result_shape(old, sources)
                and old.tensor.device == sources[0].device
            ):
                old.refold(sources)
                return old
        return None


def _release(folded: weakref.ref[FoldedWeight]) -> None:
    alive = folded()
    if alive is not None:
        alive.release()


def _result_shape(old: FoldedWeight, sources: Sequence[torch.Tensor]) -> torch.Size | None:
    same = all(stamp.shape == s.shape for stamp, s in zip(old._stamps, sources, strict=True))
    return old.tensor.shape if same else None


def invalidate(model: torch.nn.Module) -> int:
    """Fold the weights of ``model`` again at the next call; returns how many folded tensors that concerns.

    Needed after writes through ``.data`` only: every other change is seen.
    """
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage()._cdata for t in tensors}
    with _lock:
        concerned = [f for f in _alive if f.reads(storages)]
        for folded in concerned:
            folded.forget()
    return len(concerned)
