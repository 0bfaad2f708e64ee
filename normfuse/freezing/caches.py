"""The processor's last cache: whether the weights of a model stay in it, and how a measurement empties it."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from normfuse.errors import cause
from normfuse.inductor_compat import compiled_library

__all__ = ["evict", "last_cache", "lies_at"]

log = logging.getLogger("normfuse")

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

_SOURCE = r"""
#include <stdint.h>

// Write back the lines of some memory and drop them from all caches; 0 where this processor's code cannot.
extern "C" int normfuse_evict(const char* first, int64_t size) {
#if defined(__x86_64__)
    for (int64_t i = 0; i < size; i += 64) __builtin_ia32_clflush(first + i);
    __builtin_ia32_mfence();
    return 1;
#elif defined(__aarch64__) && defined(__linux__)
    for (int64_t i = 0; i < size; i += 64) asm volatile("dc civac, %0" : : "r"(first + i) : "memory");
    asm volatile("dsb ish" : : : "memory");
    return 1;
#else
    return 0;
#endif
}
"""


@cache
def last_cache() -> int:
    """Bytes of the largest cache that a core reads through; 32 MiB where the system does not tell."""
    try:
        sizes = [file.read_text().strip() for file in _CACHES.glob("index*/size")]
        return max(int(size[:-1]) * _UNITS[size[-1]] for size in sizes)
    except (OSError, ValueError, KeyError, IndexError):
        return 2**25


def evict(tensor: torch.Tensor) -> bool:
    """Drop the memory of a tensor on the CPU from all caches; its values stay. False where that cannot be."""
    function = _function()
    return function is not None and bool(function(*lies_at(tensor)))


def lies_at(tensor: torch.Tensor) -> tuple[int, int]:
    """The address of the first entry of a tensor on the CPU, and the bytes from there to behind the last one.

    The tensor may be packed: such a tensor is opaque, and only oneDNN's operators tell where it lies.
    """
    if tensor.layout != torch.strided:
        return torch.ops.mkldnn.data_ptr(tensor), torch.ops.mkldnn._nbytes(tensor)
    if not tensor.numel():
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


@cache
def _function() -> Callable[[int, int], int] | None:
    try:
        found = compiled_library(_SOURCE).normfuse_evict
    except Exception as error:
        log.info("products are measured with warm caches: %s", cause(error))
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    found.restype = ctypes.c_int
    function: Callable[[int, int], int] = found
    return function
