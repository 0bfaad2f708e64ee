"""Whether weights are as they were, told by one call of a small C function.

In Python each weight costs as much as all of what is compared of it. And reading a few words of each costs a
wait for main memory, where other work has emptied the caches; the function asks for all of them first, so
that the waits overlap.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from normfuse.inductor_compat import compiled_library, was_imported
from normfuse.torch_compat import TensorLayout, tensor_layout

__all__ = ["Comparison", "Run", "Seen", "comparison"]

log = logging.getLogger("normfuse")

_SOURCE = r"""
#include <stdint.h>

struct Run { const uint8_t* now; const uint8_t* before; int64_t step, size, count, turns; };
struct Seen { int64_t place; const uint8_t *object, *tensor; int64_t version; const void* address; };
struct Layout {
    int64_t items, handle;
    int64_t (*version)(const void*);
    int32_t (*data_ptr)(const void*, void**);
};
struct Known { Layout layout; const Seen* seen; const Run* runs; int64_t weights, pieces; };

static bool is_same(const Layout& layout, const Seen& one, const uint8_t* inputs) {
    const uint8_t* object = ((const uint8_t* const*)(inputs + layout.items))[one.place];
    if (object != one.object) return false;
    const void* handle = object + layout.handle;
    if (*(const void* const*)handle != one.tensor || layout.version(handle) != one.version) return false;
    void* address = nullptr;
    return !layout.data_ptr(handle, &address) && address == one.address;
}

// Whether the tuple `inputs` holds the tensors that were seen, and none of the words, or bytes, whose turn it
// is differs from what it was.
extern "C" int normfuse_holds(const Known* known, const uint8_t* inputs, int64_t turn) {
    for (int64_t i = 0; i < known->weights; i++) {
        __builtin_prefetch(known->seen[i].object);
        __builtin_prefetch(known->seen[i].tensor);
    }
    for (int64_t i = 0; i < known->pieces; i++) {
        const Run& run = known->runs[i];
        for (int64_t j = turn % run.turns; j < run.count; j += run.turns)
            __builtin_prefetch(run.now + j * run.step);
    }
    try {
        for (int64_t i = 0; i < known->weights; i++)
            if (!is_same(known->layout, known->seen[i], inputs)) return 0;
    } catch (...) {
        return 0;
    }
    for (int64_t i = 0; i < known->pieces; i++) {
        const Run& run = known->runs[i];
        for (int64_t j = turn % run.turns; j < run.count; j += run.turns)
            if (__builtin_memcmp(run.now + j * run.step, run.before + j * run.size, run.size)) return 0;
    }
    return 1;
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


class Seen(ctypes.Structure):
    """One weight: its place among the inputs, its Python and C++ object, its version and its address."""

    _fields_ = (
        ("place", ctypes.c_int64),
        ("object", ctypes.c_void_p),
        ("tensor", ctypes.c_void_p),
        ("version", ctypes.c_int64),
        ("address", ctypes.c_void_p),
    )


class _Known(ctypes.Structure):
    _fields_ = (
        ("items", ctypes.c_int64),
        ("handle", ctypes.c_int64),
        ("version", ctypes.c_void_p),
        ("data_ptr", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("runs", ctypes.c_void_p),
        ("weights", ctypes.c_int64),
        ("pieces", ctypes.c_int64),
    )


class Comparison:
    """Whether the weights among the inputs, which are a tuple, are those that were seen."""

    __slots__ = ("_held", "_holds", "_known")

    def __init__(
        self, holds: Callable[..., int], layout: TensorLayout, seen: Sequence[Seen], runs: Sequence[Run]
    ) -> None:
        arrays = (Seen * len(seen))(*seen), (Run * len(runs))(*runs)
        places = [ctypes.addressof(array) for array in arrays]
        known = _Known(tuple.__basicsize__, *layout, *places, len(seen), len(runs))
        self._holds, self._known, self._held = holds, ctypes.addressof(known), (known, arrays)

    def __call__(self, inputs: tuple[Any, ...], turn: int) -> bool:
        return self._holds(self._known, id(inputs), turn) == 1


def comparison(seen: Sequence[Seen], runs: Sequence[Run]) -> Comparison | None:
    """One call for all of it.

    None where there is no compiler, where nothing has been compiled in this process, since that takes
    seconds, and where PyTorch holds its tensors in another way.
    """
    function = _function() if was_imported() else None
    return None if function is None else Comparison(*function, seen, runs)


@cache
def _function() -> tuple[Callable[..., int], TensorLayout] | None:
    layout = tensor_layout()
    if layout is None:
        log.info("weights are compared in Python: this PyTorch holds its tensors in another way")
        return None
    try:
        library = compiled_library(_SOURCE)
    except Exception as error:
        log.info("weights are compared in Python: %s", error)
        return None
    address = ctypes.cast(library.normfuse_holds, ctypes.c_void_p).value
    assert address is not None
    # A function of this kind runs as Python's own, so no other thread writes to what it reads.
    kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return kind(address), layout
