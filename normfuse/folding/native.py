"""The comparison of contents in one call of a small C function.

Reading a few words of each weight costs a wait for main memory for each, where other work has emptied the
caches. The function asks for all of them first, so that the waits overlap.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache

from normfuse.inductor_compat import compiled_library, was_imported

__all__ = ["Run", "comparison"]

log = logging.getLogger("normfuse")

_SOURCE = r"""
#include <stdint.h>

struct Run { const uint8_t* now; const uint8_t* before; int64_t step, size, count, turns; };

// Whether any of the words, or bytes, whose turn it is differs from what it was.
extern "C" int normfuse_differ(const Run* runs, int64_t length, int64_t turn) {
    for (int64_t i = 0; i < length; i++) {
        const Run& run = runs[i];
        for (int64_t j = turn % run.turns; j < run.count; j += run.turns)
            __builtin_prefetch(run.now + j * run.step);
    }
    for (int64_t i = 0; i < length; i++) {
        const Run& run = runs[i];
        for (int64_t j = turn % run.turns; j < run.count; j += run.turns)
            if (__builtin_memcmp(run.now + j * run.step, run.before + j * run.size, run.size)) return 1;
    }
    return 0;
}
"""


class Run(ctypes.Structure):
    """``count`` pieces of ``size`` bytes, ``step`` bytes apart in ``now`` and packed in ``before``.

    At each call every ``turns``-th is compared.
    """

    _fields_ = (
        ("now", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("step", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("turns", ctypes.c_int64),
    )


def comparison(runs: Sequence[Run]) -> Callable[[int], int] | None:
    """A function of the turn: whether anything differs.

    None where there is no compiler, or nothing has been compiled in this process, since that takes seconds.
    """
    differ = _function() if runs and was_imported() else None
    if differ is None:
        return None
    held = (Run * len(runs))(*runs)
    length = len(runs)
    return lambda turn: int(differ(held, length, turn))


@cache
def _function() -> Callable[..., int] | None:
    try:
        found = compiled_library(_SOURCE).normfuse_differ
    except Exception as error:
        log.info("contents are compared in Python: %s", error)
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    found.restype = ctypes.c_int
    function: Callable[..., int] = found
    return function
