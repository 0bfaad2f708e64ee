"""Files in memory as the system pages them in: what is read this way is no memory of the process's own."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import torch

from normfuse.checkpoint.header import Stored

__all__ = ["Mapped"]


class Mapped:
    """A file whose tensors are views of its bytes; one that is opened ``to_write`` has its size already."""

    def __init__(self, file: Path, *, to_write: bool = False) -> None:
        access = mmap.ACCESS_WRITE if to_write else mmap.ACCESS_COPY
        self.file = os.open(file, os.O_RDWR if to_write else os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)
        self._map = mmap.mmap(self.file, 0, access=access)

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

    def write(self, stored: Stored, part: torch.Tensor, axis: int, start: int) -> None:
        """Put a part of a tensor where it begins at ``start`` along ``axis``.

        Whole rows are handed to the system, which takes them faster than it maps pages.
        """
        if axis or not part.dim():
            whole = self.tensor(stored)
            (whole.narrow(axis, start, part.shape[axis]) if part.dim() else whole).copy_(part)
            return
        data = part.reshape(-1).view(torch.uint8).numpy().data
        place = stored.start + start * (stored.size // max(stored.shape[0], 1))
        while len(data):
            done = os.pwrite(self.file, data, place)
            data, place = data[done:], place + done

    def flush(self) -> None:
        """Write what was changed to the disk."""
        self._map.flush()
