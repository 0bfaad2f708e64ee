"""What a compiled graph found for the weights of one model, and what has to hold for it to hold still."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch

from normfuse.folding.contents import whole_run
from normfuse.folding.native import Comparison, Seen, comparison
from normfuse.folding.sampled import are_unchanged
from normfuse.folding.watch import Watch
from normfuse.torch_compat import guards_may_be_skipped

__all__ = ["NOTHING", "Check", "Known", "takes_turns"]

#: Where a source stands among the inputs, who it was, and its version, address, dtype, shape and strides.
Check = tuple[int, weakref.ref[torch.Tensor], int, int, torch.dtype, torch.Size, tuple[int, ...]]

_version, _type = attrgetter("_version"), attrgetter("dtype", "shape")
_address, _strides = torch.Tensor.data_ptr, torch.Tensor.stride


class Known:
    """The folded tensors, as long as ``epoch`` stands still and the sources are as they were.

    Dynamo's own guards see other dtypes, shapes and strides; they are compared here where it may skip them.
    The epoch changes when a source goes, so that its identity is that of no other tensor. What is compared at
    every call is spelled out as lists, for one call of C code or else for Python.
    """

    __slots__ = (
        "_addresses", "_compare", "_few", "_identities", "_last", "_layouts", "_places", "_versions",
        "_whole", "counted", "elsewhere", "epoch", "many", "tensors",
    )  # fmt: skip

    def __init__(
        self,
        epoch: int,
        checks: Iterable[Check],
        watches: Iterable[Watch],
        tensors: tuple[torch.Tensor, ...] = (),
    ) -> None:
        """What there is to compare; ``watches`` may hold a source once."""
        self.epoch, self.tensors = epoch, tensors
        found = list(checks)
        self._places = [place for place, *_ in found]
        self._last = max(self._places, default=-1)
        sources = [source() for _, source, *_ in found]
        self._identities = [*map(id, sources)]
        self._versions = [version for _, _, version, *_ in found]
        self._addresses = [address for _, _, _, address, *_ in found]
        layouts = [(dtype, shape) for *_, dtype, shape, _ in found], [strides for *_, strides in found]
        self._layouts = layouts if guards_may_be_skipped() else None
        held = list(watches)
        contents = [watch.contents for watch in held]
        self._whole = [one.whole for one in contents if one.whole is not None]
        self._few = [one.few for one in contents if one.few is not None]
        self.many = [one.many for one in contents if one.many is not None]
        self.elsewhere = [one.elsewhere for one in contents if one.elsewhere is not None]
        self.counted = [watch for watch in held if watch.counts]
        self._compare = self._in_one_call(sources)

    def _in_one_call(self, sources: Sequence[torch.Tensor | None]) -> Comparison | None:
        if not sources or any(source is None for source in sources):
            return None
        tensors = [source._cdata for source in sources if source is not None]
        columns = self._places, self._identities, tensors, self._versions, self._addresses
        seen = [Seen(*one) for one in zip(*columns, strict=True)]
        return comparison(seen, [*map(whole_run, self._whole), *(few.run() for few in self._few)])

    def holds_for(self, inputs: Sequence[Any], call: int) -> bool:
        """Whether the sources among these inputs are those that were looked at, unchanged.

        An address says on which device it is. ``call`` counts the calls: each looks at other words.
        """
        if self._compare is not None and type(inputs) is tuple and len(inputs) > self._last:
            if not self._compare(inputs, call):
                return False
        elif not self._are_in_place(inputs) or self._were_written(call):
            return False
        if self._layouts and not self._are_laid_out(inputs):
            return False
        return not (self.counted and any(watch.owner_counted() for watch in self.counted))

    def _are_in_place(self, inputs: Sequence[Any]) -> bool:
        """Whether they are the same tensors, of the same versions, where they were."""
        sources = [inputs[place] for place in self._places]
        if [*map(id, sources)] != self._identities or [*map(_version, sources)] != self._versions:
            return False
        return [*map(_address, sources)] == self._addresses

    def _are_laid_out(self, inputs: Sequence[Any]) -> bool:
        """Whether they have the dtypes, shapes and strides that they had."""
        sources = [inputs[place] for place in self._places]
        return ([*map(_type, sources)], [*map(_strides, sources)]) == self._layouts

    def looks_unchanged(self) -> bool:
        """Whether many more words of the sources are what they were."""
        return not any(words.differs(0) for words in self.many) and are_unchanged(self.elsewhere)

    def _were_written(self, call: int) -> bool:
        """Whether the memory of the sources holds something else."""
        if any(memory.raw != entries for memory, entries in self._whole):
            return True
        return any(words.differs(call) for words in self._few)


NOTHING = Known(-1, (), ())

#: Which compiled graph was called last with the weights of a model, by the identity of the first of them.
_latest: dict[int, int] = {}
#: So many models are remembered.
_MANY = 1000


def takes_turns(key: int, number: int) -> bool:
    """Whether another graph than the one of this ``number`` was called last with the weights called ``key``.

    The model may have been changed between the two, as between training and evaluation.
    """
    if _latest.get(key) == number:
        return False
    if len(_latest) >= _MANY:
        _latest.clear()
    _latest[key] = number
    return True
