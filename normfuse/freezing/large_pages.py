"""Constants in large pages: of small ones a core reads half as many bytes in a second.

Much of the time in which a core waits for weights from memory goes to finding their pages of 4 KiB. Linux
puts these together to pages of 2 MiB: since 6.1 at once on request, before that by and by. Values and
addresses stay as they are. Elsewhere nothing is asked.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import torch

from normfuse.freezing.caches import lies_at

__all__ = ["PAGE", "Arena", "put_together"]

log = logging.getLogger("normfuse")

#: Bytes of a large page.
PAGE = 1 << 21
#: Constants that lie so close together are one piece of memory, but for what the allocator writes between.
_NEAR = 1 << 16
#: An arena takes at most so many bytes at once; the system provides the small pages that are written to.
_MOST = 1 << 30
_ALIGNMENT = 64

_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
#: Advice to Linux: to put pages of some memory together in the background, and to do so now.
_HUGEPAGE, _COLLAPSE = 14, 25


class Arena:
    """Memory for constants of one graph, which lie one behind the other, so that they fill large pages.

    ``size``: how many bytes they will take, as far as it is known.
    """

    def __init__(self, size: int) -> None:
        self._size = min(size, _MOST)
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, value: torch.Tensor) -> torch.Tensor:
        """A copy of ``value``, contiguous, whose memory is freed when nothing in the same piece is used."""
        size = value.numel() * value.element_size()
        first = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if first + size > self._piece.numel():
            self._piece, first = _piece(max(self._size, size)), 0
        self._used = first + size
        return self._piece[first : self._used].view(value.dtype).view(value.shape).copy_(value)


def _piece(size: int) -> torch.Tensor:
    whole = torch.empty(size + PAGE, dtype=torch.uint8)
    before = -whole.data_ptr() % PAGE
    return whole[before : before + size]


def put_together(constants: Iterable[torch.Tensor]) -> int:
    """Put pages that constants on the CPU fill together; how many large pages that makes at once.

    Memory that the process shares with the one that it was forked from is copied: nothing of the model's
    own should be given.
    """
    made = 0
    for first, last in _joined(lies_at(one) for one in constants):
        pages = range(-(-first // PAGE) * PAGE, last - PAGE + 1, PAGE)
        if pages:
            _advise(pages[0], PAGE * len(pages), _HUGEPAGE)
        made += sum(_advise(page, PAGE, _COLLAPSE) for page in pages)
    return made


def _joined(pieces: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Addresses and sizes as pieces that lie apart, each from its first byte to behind its last."""
    first = last = 0
    for address, size in sorted(set(pieces)):
        if address - last > _NEAR:
            yield first, last
            first = address
        last = max(last, address + size)
    yield first, last


def _advise(address: int, size: int, advice: int) -> bool:
    """Whether the system took some advice; that it does not changes nothing but time."""
    call = _madvise()
    return call is not None and call(address, size, advice) == 0


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's function, where a person has not switched large pages off."""
    try:
        if not sys.platform.startswith("linux") or "[never]" in _MODE.read_text():
            return None
        function: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    except (OSError, AttributeError) as error:
        log.info("constants stay in small pages: %s", error)
        return None
    return function
