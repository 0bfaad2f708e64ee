"""``weight`` and ``bias``, and what they do:  y = x * scale + shift,  one of each per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfuse.nn.precision import cast

__all__ = ["add_affine", "ones_and_zeros", "per_channel", "scale_and_shift", "scaled"]


def add_affine(layer: nn.Module, affine: bool, *shape: int, **made: Any) -> None:
    """Give the layer a ``weight`` of ones and a ``bias`` of zeros, or None for both."""
    for name, start in (("weight", 1.0), ("bias", 0.0)):
        layer.register_parameter(name, nn.Parameter(torch.full(shape, start, **made)) if affine else None)


def ones_and_zeros(
    weight: Tensor | None, bias: Tensor | None, like: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Weight and bias, and for those that are None what they stand for, in the shape of ``like``."""
    scale = torch.ones_like(like, dtype=dtype) if weight is None else weight
    return scale, torch.zeros_like(like, dtype=dtype) if bias is None else bias


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """A vector with one entry for each channel, in the shape that broadcasts to (N, C, ...)."""
    return values.reshape(values.shape[0], *[1] * (x.dim() - 2))


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """``x * scale + shift`` in the dtype of ``scale``, rounded once to that of ``x``."""
    y = x * scale
    return cast(y if shift is None else y + shift, x.dtype)


def scaled(weight: Tensor | None, mean_square: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """``weight / sqrt(mean_square + eps)`` in ``dtype``."""
    rstd = torch.rsqrt(cast(mean_square, dtype) + eps)
    return rstd if weight is None else cast(weight, dtype) * rstd
