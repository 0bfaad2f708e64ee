"""Files in memory as the system pages them in: what is read this way is no memory of the process's own."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from normfuse.checkpoint.header import Stored

__all__ = ["Mapped"]


class Mapped:
    """A file whose tensors are views of its bytes; one that is opened ``to_write`` has its size already."""

    def __init__(self, file: Path, *, to_write: bool = False) -> None:
        access = mmap.ACCESS_WRITE if to_write else mmap.ACCESS_COPY
        with file.open("r+b" if to_write else "rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=access)

    def tensor(self, stored: Stored) -> torch.Tensor:
        """The tensor whose bytes lie where ``stored`` says; memory of its own where they are not aligned."""
        count = stored.size // stored.dtype.itemsize
        if count == 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        if stored.start % stored.dtype.itemsize:
            held = bytearray(self._map[stored.start : stored.start + stored.size])
            return torch.frombuffer(held, dtype=stored.dtype).reshape(stored.shape)
        flat = torch.frombuffer(self._map, dtype=stored.dtype, count=count, offset=stored.start)
        return flat.reshape(stored.shape)

    def forget(self) -> None:
        """Let the system take the pages back; what was read is read again when it is asked for."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def flush(self) -> None:
        """Write what was changed to the disk."""
        self._map.flush()
