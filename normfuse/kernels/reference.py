"""What the kernels compute, in plain PyTorch: for CPU tensors, and to compare with."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["CRMS", "LAYER", "RMS", "linear_reference", "norm_reference"]

RMS, LAYER, CRMS = 0, 1, 2


def norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    gate: torch.Tensor | None,
    kind: int,
    eps: float,
    offset: float,
    groups: int,
    gate_first: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(y, x + residual, rstd)``; everything behind the sum is computed in float32 and rounded once.

    Given float64 tensors it computes in float64.
    """
    total = x if residual is None else x + residual
    exact = torch.promote_types(total.dtype, torch.float32)
    opening = None if gate is None else F.silu(gate.to(exact))
    u = total.to(exact)
    if opening is not None and gate_first:
        u = u * opening
    y, rstd = _normalized(u.unflatten(-1, (groups, -1)), kind, eps)
    y = y.flatten(-2)
    if weight is not None:
        y = y * (weight.to(exact) + offset)
    if bias is not None:
        y = y + bias.to(exact)
    if opening is not None and not gate_first:
        y = y * opening
    return y.to(total.dtype), total, rstd if groups > 1 else rstd.squeeze(-1)


def _normalized(u: torch.Tensor, kind: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == LAYER:
        u = u - u.mean(-1, keepdim=True)
    square = u.square().sum(-1)
    if kind == CRMS:
        rstd = ((square + u.sum(-1).square()) / (u.shape[-1] + 1) + eps).rsqrt()
    else:
        rstd = (square / u.shape[-1] + eps).rsqrt()
    return u * rstd.unsqueeze(-1), rstd


def linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``((h W') * rstd + b, h)`` with ``h = x + residual``; products and sums in float32, rounded once."""
    total = x if residual is None else x + residual
    exact = torch.promote_types(total.dtype, torch.float32)
    wide = total.to(exact)
    rstd = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        y = F.linear(wide, weight.to(exact)) * rstd
    return (y if bias is None else y + bias.to(exact)).to(total.dtype), total
