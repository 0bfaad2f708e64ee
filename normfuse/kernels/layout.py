"""Tensors as the kernels see them: rows with values next to each other, and a number of programs."""

from __future__ import annotations

import torch

__all__ = ["dense", "float32", "programs", "rows_of", "strides"]

#: In the place of a multiprocessor count where there is none, as under the interpreter.
_PROCESSORS = 3


def rows_of(value: torch.Tensor | None, width: int) -> torch.Tensor | None:
    """``(rows, width)``; copied only where the values of a row do not lie next to each other."""
    if value is None:
        return None
    flat = value.reshape(-1, width)
    return flat if width == 1 or flat.stride(1) == 1 else flat.contiguous()


def dense(value: torch.Tensor | None) -> torch.Tensor | None:
    """Without gaps, or None."""
    return None if value is None else value.contiguous()


def strides(*values: torch.Tensor | None) -> list[int]:
    """From row to row; zero for what is not there."""
    return [0 if value is None else value.stride(0) for value in values]


def programs(device: torch.device, tiles: int, beside: int, warps: int) -> int:
    """Along the rows: as many as a device holds at once, with 64 registers a thread, where ``beside`` stand
    side by side for each.

    Each leaves a float32 row of sums, so more would cost memory traffic and gain nothing.
    """
    count = _PROCESSORS
    if device.type == "cuda" and torch.cuda.is_available():
        count = torch.cuda.get_device_properties(device).multi_processor_count
    found: int = torch.sym_min(tiles, max(1, count * (32 // warps) // beside))
    return found


def float32(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Memory for float32 numbers beside ``like``."""
    return torch.empty(shape, dtype=torch.float32, device=like.device)
