"""RMSNorm with a bias, and a centring: what modules compute whose norms or lookups were changed."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["centre", "centred", "rms_norm"]


def rms_norm(
    x: torch.Tensor, width: int, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float | None
) -> torch.Tensor:
    """``y = x / sqrt(mean(x^2) + eps) * weight + bias`` over the last axis, of size ``width``.

    Zhang and Sennrich 2019, arXiv 1910.07467, equation 4. Half precision is computed in float32 and rounded
    once, at the end; the result has the dtype of ``x``.
    """
    wide = _widened(x.dtype)
    if bias is None or wide == x.dtype:
        value = F.rms_norm(x, (width,), weight, eps)
        return value if bias is None else value + bias
    value = F.rms_norm(x.to(wide), (width,), None, eps)
    value = value if weight is None else value * weight
    return (value + bias).to(x.dtype)


def centre(module: torch.nn.Module, inputs: object, value: torch.Tensor) -> torch.Tensor:
    """A forward hook for a lookup whose table is tied to something that reads it as it is.

    y = e - mean(e),  e = table[ids]
    """
    return centred(value)


def centred(value: torch.Tensor) -> torch.Tensor:
    """``x - mean(x)`` over the last axis, computed in at least float32."""
    wide = value.to(_widened(value.dtype))
    return (wide - wide.mean(-1, keepdim=True)).to(value.dtype)


def _widened(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
