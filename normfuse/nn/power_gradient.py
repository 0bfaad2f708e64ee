"""``y = weight * z + bias``, ``z = x / psi``, with the gradient of power normalization.

    g     = dL/dy * weight
    nu    = (1 - alpha) e_{t-1}
    d     = g - nu z;  in warm-up g - mean(g z) z, the derivative
    dL/dx = d / psi
    e_t   = e_{t-1} + mean((g - nu z) z),   so  nu_t = nu (1 - (1 - alpha) mean(z^2)) + (1 - alpha) mean(g z)

Means are over tokens; padding takes part as in :mod:`normfuse.nn.smoothed_gradient`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normfuse.nn.affine import scale_and_shift
from normfuse.nn.moments import Tokens, sum_of_tokens
from normfuse.nn.once import differentiable_once
from normfuse.nn.precision import cast

__all__ = ["PowerGradient"]


class PowerGradient(torch.autograd.Function):
    """The forward pass is the plain affine map; see the module for the backward pass."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, tokens: Tokens, rstd: Tensor, is_warm: Tensor,
        ema: Tensor, alpha: float,
    ) -> Tensor:  # fmt: skip
        return scale_and_shift(x, cast(weight, rstd.dtype) * rstd, cast(bias, rstd.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.tokens, rstd, is_warm, ctx.ema, ctx.alpha = inputs
        ctx.save_for_backward(x, weight, rstd, is_warm)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, is_warm = ctx.saved_tensors
        tokens: Tokens = ctx.tokens
        dy, z = cast(grads[0], rstd.dtype), cast(x, rstd.dtype) * rstd
        g = dy * cast(weight, rstd.dtype)
        ema = cast(ctx.ema, rstd.dtype)
        nu = (1 - ctx.alpha) * ema
        correlation, power = sum_of_tokens(g * z) / tokens.count, tokens.mean_square(z)
        moved = ema + correlation - nu * power
        ctx.ema.copy_(tokens.unless_empty(moved, ema))
        subtracted = torch.where(is_warm, correlation, nu)
        dx = (g - tokens.keep(subtracted * z)) * rstd
        wanted = (
            cast(dx, x.dtype),
            cast(sum_of_tokens(dy * z), weight.dtype),
            cast(sum_of_tokens(dy), ctx.bias_dtype),
        )
        return *wanted, None, None, None, None, None
