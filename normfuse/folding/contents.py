"""What the memory of a weight holds, compared with what it held when the weight was folded.

Version counters tell of most writes, not of all: collectives, writes through ``.data`` or NumPy, kernels that
update running statistics and memory that is filled anew under a preserved counter raise none. So the
contents themselves are looked at. Vectors, and tables that may hold running statistics, are compared as a
whole; of a larger weight, words that lie evenly all over it. A few are read at every call, others at the next
one, since each may cost a wait for main memory; a thousand whenever a weight is looked up.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch

from normfuse.folding.native import Run
from normfuse.folding.sampled import Sampled, are_unchanged, sampled

__all__ = ["TURNS", "Bytes", "Contents", "Spread", "whole_run"]

#: The memory of a tensor on the host, whose ``raw`` are its bytes now, and what they were.
Bytes = tuple["ctypes.Array[ctypes.c_char]", bytes]

_WORD = 8
#: Weights of so many bytes are compared as a whole: a vector of 256 numbers in float32 among them.
_SMALL = 2**10
#: The same for what may hold running statistics, of which a kernel may write a single row.
_SMALL_STATISTICS = 2**16
#: Words of a larger table that may hold statistics.
_ROWS = 2**12
#: Words of a weight read at every call, calls after which they are the same again, words where there is time.
_FEW, TURNS, _MANY = 8, 64, 2**10


class Spread:
    """Words that lie evenly over a tensor, now and as they were; every ``turns``-th is compared at a time."""

    __slots__ = ("_base", "_step", "before", "now", "turns")

    def __init__(self, view: memoryview[Any], step: int, count: int, turns: int = 1) -> None:
        self.now = view[::step][:count]
        self.before = memoryview(bytearray(self.now.tobytes())).cast("Q")
        self.turns = turns
        self._base, self._step = ctypes.addressof(ctypes.c_char.from_buffer(view)), _WORD * step

    def differs(self, turn: int) -> bool:
        """Whether any of the words whose turn it is differs from what it was."""
        first = turn % self.turns
        return self.now[first :: self.turns] != self.before[first :: self.turns]

    def run(self) -> Run:
        """The same for :mod:`normfuse.folding.native`, as long as this object lives."""
        return Run(self._base, _address(self.before), self._step, _WORD, len(self.now), self.turns)


def whole_run(whole: Bytes) -> Run:
    """All bytes of a tensor for :mod:`normfuse.folding.native`, as long as ``whole`` lives."""
    memory, before = whole
    held = ctypes.cast(ctypes.c_char_p(before), ctypes.c_void_p).value
    return Run(ctypes.addressof(memory), held, len(before), len(before), 1, 1)


def _address(words: memoryview[Any]) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(words))


@dataclass(frozen=True)
class Contents:
    """What one tensor held.

    Of a tensor on the host ``whole`` is compared at every call, or ``few`` in turns; ``many`` where there
    is time. It has to lie where it lay: its memory is read by address. Of a tensor on an accelerator there
    is ``elsewhere``, compared where there is time.
    """

    whole: Bytes | None = None
    few: Spread | None = None
    many: Spread | None = None
    elsewhere: Sampled | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor, may_be_statistics: bool = False) -> Contents:
        """Take down what ``tensor`` holds, of any dtype and strides."""
        if not _is_on_host(tensor):
            return cls(elsewhere=None if tensor.device.type == "meta" else sampled(tensor))
        size = _extent(tensor)
        if not size:
            return cls()
        memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
        if size <= (_SMALL_STATISTICS if may_be_statistics else _SMALL):
            return cls(whole=(memory, memory.raw))
        view = memoryview(memory).cast("B")[: size - size % _WORD].cast("Q")
        row = max(tensor.shape[-1] * tensor.element_size() // _WORD, 1)
        many = _spread(view, row, _ROWS if may_be_statistics else _MANY)
        if may_be_statistics:
            return cls(few=many, many=many)
        return cls(few=_spread(view, row, _FEW * TURNS, TURNS), many=many)

    def has_changed(self) -> bool:
        """Whether any byte, or any of many words, is another than it was."""
        if self.whole is not None:
            return self.whole[0].raw != self.whole[1]
        if self.elsewhere is not None:
            return not are_unchanged([self.elsewhere])
        return self.many is not None and self.many.differs(0)


def _is_on_host(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last entry, whatever lies between them."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _spread(view: memoryview[Any], row: int, count: int, turns: int = 1) -> Spread:
    """About ``count`` words, in every row where there are enough of them, and in every column in turn."""
    step = max(len(view) // count, 1)
    while math.gcd(step, row) > 1:
        step -= 1
    return Spread(view, step, 2 * count, turns)
