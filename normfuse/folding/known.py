"""What a compiled graph found for the weights of one model, and what has to hold for it to hold still."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from normfuse.folding.contents import TURNS, Bytes, Words
from normfuse.folding.sampled import Sampled, are_unchanged
from normfuse.folding.watch import Watch

__all__ = ["NOTHING", "Check", "Known", "takes_turns"]

#: Where a source stands among the inputs, who it was, version, address, dtype, shape and strides.
Check = tuple[int, weakref.ref[torch.Tensor], int, int, torch.dtype, torch.Size, tuple[int, ...]]


class Known(NamedTuple):
    """The folded tensors, as long as ``epoch`` stands still and the sources are as they were.

    The comparisons are spelled out because they run for every weight at every call.
    """

    epoch: int
    checks: list[Check]
    whole: list[Bytes]
    turns: list[list[Words]]
    many: list[Words]
    elsewhere: list[Sampled]
    counted: list[Watch]
    tensors: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls,
        epoch: int,
        checks: Mapping[int, Check],
        watches: Mapping[int, Watch],
        tensors: tuple[torch.Tensor, ...],
    ) -> Known:
        """What there is to compare, by the places of the sources among the inputs."""
        contents = [watch.contents for watch in watches.values()]
        whole = [one.whole for one in contents if one.whole is not None]
        spread = [one.turns for one in contents if one.turns]
        turns = [[words[turn % len(words)] for words in spread] for turn in range(TURNS)]
        many = [one.many for one in contents if one.many is not None]
        elsewhere = [one.elsewhere for one in contents if one.elsewhere is not None]
        counted = [watch for watch in watches.values() if watch.counts]
        return cls(epoch, list(checks.values()), whole, turns, many, elsewhere, counted, tensors)

    def holds_for(self, inputs: Sequence[Any], call: int) -> bool:
        """Whether the sources among these inputs are those that were looked at, unchanged.

        An address says on which device it is. ``call`` counts the calls: each looks at other words.
        """
        for position, expected, version, address, dtype, shape, stride in self.checks:
            source: torch.Tensor = inputs[position]
            if expected() is not source or source._version != version or source.data_ptr() != address:
                return False
            if source.dtype is not dtype or source.shape != shape or source.stride() != stride:
                return False
        return not self._were_written(call % TURNS)

    def looks_unchanged(self) -> bool:
        """Whether many more words of the sources are what they were."""
        return not any(now != before for now, before in self.many) and are_unchanged(self.elsewhere)

    def _were_written(self, turn: int) -> bool:
        """Whether the memory of the sources holds something else, or a norm has trained on a batch since."""
        for memory, entries in self.whole:
            if memory.raw != entries:
                return True
        for now, before in self.turns[turn]:
            if now != before:
                return True
        return any(watch.owner_counted() for watch in self.counted)


NOTHING = Known(-1, [], [], [], [], [], [], ())

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
