"""The memory of this machine."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["machine_memory"]

_LIMIT = Path("/sys/fs/cgroup/memory.max")


@cache
def machine_memory() -> int:
    """Bytes of memory, or as many as this process's group may use; a gibibyte where neither is known."""
    try:
        known = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        known = 2**30
    try:
        return min(known, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no such limit
        return known
