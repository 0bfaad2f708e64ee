"""Where a compiled graph gets a folded weight from, at every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from normfuse.folding import store
from normfuse.folding.known import NOTHING, Check, Known, takes_turns
from normfuse.folding.premise import Asked, BrokenPremiseError
from normfuse.folding.recipe import Recipe
from normfuse.folding.store import LOCK, FoldedWeight, Owner
from normfuse.folding.watch import Watch

__all__ = ["Slot", "Slots"]

_Identity = tuple[Any, ...]
#: So much is remembered of what was found before.
_MANY = 1000
_shared: WeakValueDictionary[tuple[str, _Identity], FoldedWeight] = WeakValueDictionary()


def _identity(sources: Sequence[torch.Tensor]) -> _Identity:
    return tuple((s.data_ptr(), s.shape, s.stride(), s.dtype, s.device) for s in sources)


class Slot:
    """One folded input of one compiled graph; graphs with the same recipe and sources share the tensor.

    A graph may be called with the weights of several models of one class in turn; each has a
    folded tensor of its own, kept as long as its sources live.
    """

    def __init__(
        self,
        recipe: Recipe,
        positions: Sequence[int],
        owners: Sequence[Owner] = (),
        watched: Mapping[int, Owner | None] | None = None,
    ) -> None:
        self.recipe = recipe
        self._watched = dict(watched or {})
        self.positions = tuple(positions)
        self._owners = tuple(owners)
        self._known: dict[_Identity, FoldedWeight] = {}
        self._last: dict[tuple[int, ...], int] = {}
        self._is_new = True

    def let_go(self) -> None:
        """Hold no folded tensor."""
        self._known.clear()

    def find(self, inputs: Sequence[Any]) -> FoldedWeight:
        """The folded weight for the sources among these graph inputs, up to date."""
        sources = [inputs[p] for p in self.positions]
        with LOCK:
            identity = _identity(sources)
            found = self._folded_from(identity)
            if found is None:
                found = self._adopt(sources) or self._make(sources)
            elif not self._still_holds(found, sources):
                found.refold(sources)
            self._is_new, self._owners = False, ()
            self._known[identity] = _shared[self.recipe.key, identity] = found
            self._remember(sources, found)
            return found

    def _folded_from(self, identity: _Identity) -> FoldedWeight | None:
        """What was folded from the memory at these places, and from no other since."""
        for found in (self._known.get(identity), _shared.get((self.recipe.key, identity))):
            if found is not None and found.lies_at(identity):
                return found
        return None

    def _still_holds(self, found: FoldedWeight, sources: Sequence[torch.Tensor]) -> bool:
        """What another graph folded is computed again for a comparison when this one comes to it."""
        if self._was_elsewhere(sources, found) or not found.is_current(sources):
            return False
        return not self._is_new or found.agrees(sources)

    def _was_elsewhere(self, sources: Sequence[torch.Tensor], found: FoldedWeight) -> bool:
        """Whether these tensors had other memory meanwhile, through ``.data``: versions tell of one alone."""
        return self._last.get(tuple(map(id, sources)), found.number) != found.number

    def _remember(self, sources: Sequence[torch.Tensor], found: FoldedWeight) -> None:
        if len(self._last) >= _MANY:
            self._last.clear()
        self._last[tuple(map(id, sources))] = found.number

    def _make(self, sources: Sequence[torch.Tensor]) -> FoldedWeight:
        """The modules of the weights that the graph was compiled with own what is folded first."""
        return FoldedWeight(self.recipe, sources, self._owners, self._watched)

    def _adopt(self, sources: Sequence[torch.Tensor]) -> FoldedWeight | None:
        """A folded tensor whose own sources are gone: its memory serves the new ones."""
        for identity, old in list(self._known.items()):
            is_here = old.lies_at(identity)
            if not is_here or old.is_abandoned:
                del self._known[identity]
            if is_here and old.is_abandoned:
                _shared.pop((self.recipe.key, identity), None)
                if old.can_serve(sources):
                    old.refold(sources)
                    return old
        return None


class Slots:
    """All folded inputs of one compiled graph.

    ``premises`` tell, for given graph inputs, whether the rewrite of the graph is still the right one. What
    is known is kept for each model that the graph is called with, as for layers that share one graph.
    ``copied_bytes`` is what the folded tensors that were looked up last hold beside their sources.
    """

    def __init__(self, slots: Sequence[Slot], premises: Sequence[Asked] = ()) -> None:
        self._slots = tuple(slots)
        self._premises = tuple(premises)
        self._judged: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._known: dict[int, Known] = {}
        self._first = min((p for slot in slots for p in slot.positions), default=0)
        self._number, self._calls = next(store.numbers), 0
        self.copied_bytes = 0
        store.register(self)

    @property
    def places(self) -> set[int]:
        """Where the inputs stand that anything here depends on."""
        asked = {p for premise in self._premises for places in premise.positions for p in places}
        return asked | {p for slot in self._slots for p in slot.positions}

    def let_go(self) -> None:
        """Hold no folded tensor until the next call."""
        self._known = {}

    def clear(self) -> None:
        """Hold nothing that was folded; it is made anew at the next call."""
        with LOCK:
            self._known, self._judged = {}, {}
            for slot in self._slots:
                slot.let_go()

    def tensors(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The folded tensors for the weights among these graph inputs.

        What is known is read once, as a whole, since other threads may replace it. Where another graph was
        called with the same weights in between, the model itself was changed perhaps, and more of the weights
        is compared.

        Raises:
            BrokenPremiseError: when the weights are such that the graph would be rewritten in another way.
        """
        if not self._slots:
            return ()
        key = id(inputs[self._first])
        known = self._known.get(key, NOTHING)
        self._calls += 1
        if known.epoch != store.epoch or not known.holds_for(inputs, self._calls):
            return self._look_up(inputs)
        if takes_turns(key, self._number) and not known.looks_unchanged():
            return self._look_up(inputs)
        return known.tensors

    def _look_up(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        with LOCK:
            found = [slot.find(inputs) for slot in self._slots]
            self._ask_again(found, inputs)
            for folded in found:
                folded.is_lent |= torch.is_grad_enabled()
            self.copied_bytes = sum(f.tensor.nbytes for f in found if not f.is_source)
            known = self._found(found, store.epoch)
            if not any(folded.is_unsettled for folded in found):
                self._remember(inputs, known)
            return known.tensors

    def _found(self, found: Sequence[FoldedWeight], epoch: int) -> Known:
        """What has to be compared at the next call, each source once, as it was looked at first.

        What another thread writes to it between two slots is seen by that.
        """
        checks: dict[int, Check] = {}
        watches: dict[int, Watch] = {}
        for slot, folded in zip(self._slots, found, strict=True):
            for place, known, stamp in zip(slot.positions, folded.sources, folded.stamps, strict=True):
                checks.setdefault(place, (place, known, *stamp[:5]))
            watches = dict(zip(slot.positions, folded.watches, strict=True)) | watches
        return Known(epoch, checks.values(), watches.values(), tuple(folded.tensor for folded in found))

    def _remember(self, inputs: Sequence[Any], known: Known) -> None:
        """Keep what is known of these weights, and nothing that is out of date."""
        kept = {key: one for key, one in self._known.items() if one.epoch == store.epoch}
        key = id(inputs[self._first])
        self._known = {**kept, key: known}
        takes_turns(key, self._number)

    def _ask_again(self, found: Sequence[FoldedWeight], inputs: Sequence[Any]) -> None:
        numbers, refolds = tuple(f.number for f in found), tuple(f.refolds for f in found)
        if self._judged.get(numbers) != refolds:
            broken = [premise for premise in self._premises if not premise.is_met(inputs)]
            if broken:
                raise BrokenPremiseError(broken, inputs)
            if len(self._judged) >= _MANY:
                self._judged.clear()
            self._judged[numbers] = refolds
