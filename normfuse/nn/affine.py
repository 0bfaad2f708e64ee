"""What a norm with running statistics is in evaluation:  y = x * scale + shift,  one of each per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from normfuse.nn.inputs import widen

__all__ = ["scale_and_shift", "scaled"]


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` in the dtype of ``scale``, rounded once to that of ``x``."""
    y = x * scale
    return widen(y if shift is None else y + shift, x.dtype)


def scaled(weight: Tensor | None, mean_square: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``weight / sqrt(mean_square + eps)`` in ``dtype``."""
    rstd = torch.rsqrt(widen(mean_square, dtype) + eps)
    return rstd if weight is None else widen(weight, dtype) * rstd
