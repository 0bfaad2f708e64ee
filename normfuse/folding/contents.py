"""What the memory of a weight holds, compared with what it held when the weight was folded.

Version counters tell of most writes, not of all: collectives, writes through ``.data`` or NumPy, kernels that
update running statistics and memory that is filled anew under a preserved counter raise none. So the
contents themselves are looked at. Vectors, and tables that may hold running statistics, are compared as a
whole; of a larger weight, words that lie evenly all over it. A few are read at every call, some thousands
whenever a weight is looked up.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Bytes", "Contents", "Words"]

#: The memory of a tensor on the host, whose ``raw`` are its bytes now, and what they were.
Bytes = tuple["ctypes.Array[ctypes.c_char]", bytes]
#: Words in the memory of a tensor, as they are now, and what they were.
Words = tuple["memoryview[Any]", "memoryview[Any]"]

_WORD = 8
#: Weights of so many bytes are compared as a whole: a vector of 256 numbers in float32 among them.
_SMALL = 2**10
#: The same for what may hold running statistics, of which a kernel may write a single row.
_SMALL_STATISTICS = 2**16
#: Words read at every call of a weight, of a large table that may hold statistics, and when looked up.
_FEW, _ROWS, _MANY = 64, 2**12, 2**12


@dataclass(frozen=True)
class Contents:
    """What one tensor on the host held; nothing for a tensor elsewhere, or an empty one.

    ``whole`` or ``words`` are compared at every call, ``more`` besides where there is time. The tensor has to
    lie where it lay: its memory is read by address.
    """

    whole: Bytes | None = None
    words: Words | None = None
    more: Words | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor, may_be_statistics: bool = False) -> Contents:
        """Take down what ``tensor`` holds, of any dtype and strides."""
        size = _extent(tensor)
        if not size:
            return cls()
        memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
        if size <= (_SMALL_STATISTICS if may_be_statistics else _SMALL):
            return cls(whole=(memory, memory.raw))
        view = memoryview(memory).cast("B")[: size - size % _WORD].cast("Q")
        row = max(tensor.shape[-1] * tensor.element_size() // _WORD, 1)
        few = _spread(view, row, _ROWS if may_be_statistics else _FEW)
        return cls(words=few, more=None if may_be_statistics else _spread(view, row, _MANY))

    def has_changed(self) -> bool:
        """Whether any byte or word that was taken down differs."""
        if self.whole is not None and self.whole[0].raw != self.whole[1]:
            return True
        return any(pair is not None and pair[0] != pair[1] for pair in (self.words, self.more))


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last entry, whatever lies between them."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _spread(view: memoryview[Any], row: int, count: int) -> Words:
    """About ``count`` words, in every row where there are enough of them, and in every column in turn."""
    step = max(len(view) // count, 1)
    while step > 1 and math.gcd(step, row) > 1:
        step -= 1
    now = view[::step][: 2 * count]
    return now, memoryview(now.tobytes()).cast("Q")
