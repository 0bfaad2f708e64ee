"""Folded weights that are never stale.

When a source changed, the folded tensor is computed again *into the same memory*, so compiled code
and CUDA graphs that hold its address stay right. Three guards tell of a change, each without the others: the
tensor's identity, version counter and address; what its memory holds (:mod:`normfuse.folding.contents`); and
the known writers themselves (:mod:`normfuse.folding.writers`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from operator import methodcaller
from threading import RLock
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch

from normfuse.errors import InputError
from normfuse.folding.recipe import Recipe
from normfuse.folding.watch import Watch
from normfuse.folding.whole import fold, folded
from normfuse.torch_compat import outside_tracing, storage_id, storage_is_abandoned

__all__ = [
    "LOCK", "FoldedWeight", "Holder", "Owner", "Reader", "forget", "has_folded", "invalidate", "living",
    "numbers", "readers", "register",
]  # fmt: skip

Owner = weakref.ref[torch.nn.Module]

#: Held while folded tensors are made, changed or looked up.
LOCK = RLock()
#: Counts the changes of all folded weights: while it stands still, what was looked up holds.
epoch = 0
_alive: WeakSet[Reader] = WeakSet()
#: Who has read which storages; those are held as long as they have readers.
_reading: dict[int, WeakSet[Reader]] = {}
#: Tells readers, and compiled graphs, from one another.
numbers = count()


class Holder(Protocol):
    """Holds folded tensors from one call to the next."""

    def let_go(self) -> None:
        """Look them up again at the next call."""


_holders: WeakSet[Holder] = WeakSet()


class _Stamp(NamedTuple):
    """What one source looked like when it was folded."""

    version: int
    address: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, source: torch.Tensor) -> _Stamp:
        return cls(
            source._version, source.data_ptr(), source.dtype, source.shape, source.stride(), source.device
        )


class Reader:
    """Something that was made of weights, and the state of those when it was.

    It is released when one of ``owners`` goes, the modules that hold the sources; without owners, when a
    source goes. ``watched`` are the sources, by number, that may be running statistics, with owners.
    """

    def __init__(
        self,
        sources: Sequence[torch.Tensor],
        owners: Sequence[Owner] = (),
        watched: Mapping[int, Owner | None] | None = None,
    ) -> None:
        self.number = next(numbers)
        self._watched = dict(watched or {})
        self.watches: list[Watch] = []
        self._is_writing: Callable[[], bool] | None = None
        self._has_owners = any(owner() is not None for owner in owners)
        self.stamps: list[_Stamp] = []
        self.sources: list[weakref.ref[torch.Tensor]] = []
        self._storages: list[torch.UntypedStorage] = []
        self._note(sources)
        _alive.add(self)
        for owner in owners:
            if (module := owner()) is not None:
                weakref.finalize(module, _release, weakref.ref(self)).atexit = False

    def _note(self, sources: Sequence[torch.Tensor]) -> None:
        """Remember the sources, before they are read: what another thread writes meanwhile is then seen.

        Their memory is held, so an address is never reused by another tensor. Another tensor over the same
        memory counts its own versions, so the tensors themselves are known as well.
        """
        gone = _once_gone(weakref.ref(self), methodcaller("forget" if self._has_owners else "release"))
        self.sources[:] = [weakref.ref(s, gone) for s in sources]
        self.stamps[:] = [_Stamp.of(s) for s in sources]
        self._storages[:] = [s.untyped_storage() for s in sources]
        self.watches = [Watch(s, i in self._watched, self._watched.get(i)) for i, s in enumerate(sources)]
        _note_reader(self, self._storages)
        _advance()

    def is_current(self, sources: Sequence[torch.Tensor]) -> bool:
        """Whether the sources are the ones that were read, unchanged."""
        if self.is_unsettled or self.stamps != [_Stamp.of(s) for s in sources]:
            return False
        if any(known() is not s for known, s in zip(self.sources, sources, strict=True)):
            return False
        return not any(watch.has_changed() for watch in self.watches)

    @property
    def is_unsettled(self) -> bool:
        """Whether a known writer may write to the sources at any moment.

        When it has come to its end, what was read meanwhile is read once more.
        """
        if self._is_writing is not None and not self._is_writing():
            self._is_writing = None
            self.forget()
        return self._is_writing is not None

    def settle(self, is_writing: Callable[[], bool] | None) -> None:
        """Note a writer that has begun and tells whether it still writes, or that none does."""
        self._is_writing = is_writing

    def forget(self) -> None:
        """Make the next call read the sources again."""
        self.stamps[:] = [stamp._replace(version=-1) for stamp in self.stamps]
        _advance()

    def release(self) -> None:
        """Give the memory back: the model is gone."""
        self.stamps.clear()
        self.sources.clear()
        self.watches = []
        self._storages.clear()
        for holder in list(_holders):
            holder.let_go()
        _advance()

    @property
    def is_released(self) -> bool:
        return not self.stamps

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody but this object holds the memory of a source any more."""
        return any(storage_is_abandoned(s, 1 + self._shows(s)) for s in self._storages)

    def _shows(self, storage: torch.UntypedStorage) -> bool:
        """Whether what was made is a source itself, and holds this memory once more."""
        return False

    def lies_at(self, places: Sequence[tuple[Any, ...]]) -> bool:
        """Whether it was made from the memory at these addresses; they come first in each place."""
        return bool(self.stamps) and all(
            stamp.address == place[0] for stamp, place in zip(self.stamps, places, strict=True)
        )

    def can_serve(self, sources: Sequence[torch.Tensor]) -> bool:
        """Whether sources like these give the same kind of result."""
        return not self.is_released and all(
            stamp[2:] == _Stamp.of(s)[2:] for stamp, s in zip(self.stamps, sources, strict=True)
        )


class FoldedWeight(Reader):
    """One folded tensor and the state of the sources it was made of.

    ``is_lent`` says that autograd may have saved the tensor, which nothing may write to from then on;
    ``is_source`` that the tensor is a source, which holds what would be folded but for rounding.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[torch.Tensor],
        owners: Sequence[Owner] = (),
        watched: Mapping[int, Owner | None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.refolds = 0
        self.is_lent = False
        self.is_source = False
        super().__init__(sources, owners, watched)
        self.tensor, self.is_source = fold(recipe, sources)

    def agrees(self, sources: Sequence[torch.Tensor]) -> bool:
        """Whether the sources, read once more, give the tensor bit by bit."""
        fresh, is_source = self._folded(sources)
        return is_source == self.is_source and torch.equal(fresh, self.tensor)

    def refold(self, sources: Sequence[torch.Tensor]) -> None:
        """Compute the tensor again, into the same memory where autograd cannot have saved it."""
        self._note(sources)
        try:
            fresh, is_source = self._folded(sources)
            with outside_tracing():
                stays = not (self.is_lent or self.is_source)
                self.tensor = self.tensor.copy_(fresh) if stays else fresh
            self.is_lent, self.is_source = False, is_source
        except BaseException:
            self.forget()
            raise
        self.refolds += 1

    def _folded(self, sources: Sequence[torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """Anew; what has memory of its own keeps it, since a CUDA graph may hold the address."""
        return fold(self.recipe, sources) if self.is_source else (folded(self.recipe, sources), False)

    def _shows(self, storage: torch.UntypedStorage) -> bool:
        return self.is_source and storage_id(self.tensor) == storage._cdata

    def release(self) -> None:
        """Give the memory back: the model is gone."""
        self.tensor, self.is_source = torch.empty(0), False
        super().release()


def register(holder: Holder) -> None:
    """Tell it when a folded weight is released."""
    _holders.add(holder)


def _advance() -> None:
    global epoch
    with LOCK:
        epoch += 1


def _release(reader: weakref.ref[Reader]) -> None:
    alive = reader()
    if alive is not None:
        alive.release()


def _once_gone(reader: weakref.ref[Reader], does: Callable[[Reader], object]) -> Callable[[object], None]:
    """For a reference to a source: what happens to the reader when the source goes.

    Nothing where the interpreter comes to its end, and takes modules apart before the last tensors go.
    """

    def gone(_: object, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        alive = None if is_ending() else reader()
        if alive is not None and not alive.is_released:
            does(alive)

    return gone


def _note_reader(reader: Reader, storages: Iterable[torch.UntypedStorage]) -> None:
    with LOCK:
        if len(_reading) > 8 * len(_alive) + 1000:
            for key in [k for k, readers in _reading.items() if not readers]:
                del _reading[key]
        for storage in storages:
            _reading.setdefault(storage._cdata, WeakSet()).add(reader)


def has_folded() -> bool:
    """Whether anything was made of weights that might change."""
    return bool(_reading) and len(_alive) > 0


def forget(tensors: Iterable[torch.Tensor]) -> set[Reader]:
    """Make anew, at its next use, whatever was made of the memory of ``tensors``; what that is."""
    with LOCK:
        found: set[Reader] = set()
        for tensor in tensors:
            found.update(_reading.get(storage_id(tensor) or 0, ()))
        for reader in found:
            reader.forget()
    return found


def readers() -> list[Reader]:
    """Everything that is made of weights and kept."""
    return [reader for reader in _alive if not reader.is_released]


def living() -> list[FoldedWeight]:
    """Every folded weight that holds memory."""
    return [reader for reader in readers() if isinstance(reader, FoldedWeight)]


def invalidate(model: torch.nn.Module) -> int:
    """Make what is made of the weights of ``model`` anew at the next call; returns how many things that are.

    Those are folded weights, and graphs that were compiled with the weights in them (``normfuse.freeze``).

    Needed after a change of a few entries that raises no version counter: through ``.data``, NumPy, a kernel
    of your own or another process. In-place operators, ``load_state_dict``, every ``torch.optim.Optimizer``,
    collectives, and whatever changes many entries of a weight on the host are seen.

    Raises:
        InputError: when ``model`` is not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"expected the torch.nn.Module that was compiled, got {type(model).__name__}")
    return len(forget([*model.parameters(), *model.buffers()]))
