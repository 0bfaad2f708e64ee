"""Precision: in which dtype PyTorch computes, and which casts lose nothing."""

from __future__ import annotations

import math

import torch

__all__ = ["FLOATS", "WIDER", "digits", "opmath"]

#: Floating dtypes in which weights are folded.
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Casts that lose nothing.
WIDER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}


def digits(dtype: torch.dtype) -> int:
    """How many binary digits a floating ``dtype`` keeps: float16 has three more than bfloat16."""
    return round(-math.log2(torch.finfo(dtype).eps))


def opmath(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which PyTorch computes statistics of a floating ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
