"""The precision of statistics: float32 for half precision, rounded once at the end."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cast", "wide_dtype", "widened"]


def wide_dtype(x: Tensor) -> torch.dtype:
    """What statistics of ``x`` are computed in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return cast(x, wide_dtype(x))


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in ``dtype``, with no operation where it is that already."""
    return value if value.dtype == dtype else value.to(dtype)
