"""Precision: in which dtype PyTorch computes, and which casts lose nothing."""

from __future__ import annotations

import torch

__all__ = ["FLOATS", "WIDER", "opmath"]

#: Floating dtypes in which weights are folded.
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Casts that lose nothing.
WIDER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}


def opmath(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which PyTorch computes statistics of a floating ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
