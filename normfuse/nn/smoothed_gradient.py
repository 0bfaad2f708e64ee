"""``y = weight * z + bias``, ``z = x / sqrt(s2 + eps)``, with the gradient of unified normalization.

    g      = dL/dy * weight * r
    gz_t   = mean over tokens of g * z
    m_t    = arithmetic mean of the last gz;  gz_t in warm-up, while the window fills, and on skip
    e_t    = momentum e_{t-1} + (1 - momentum) m_t
    dL/dx  = (g - e_t z) / sqrt(s2 + eps),      on skip (g - m_t z) / sqrt(s2 + eps)
    dL/dweight = sum of dL/dy * r z,            dL/dbias = sum of dL/dy

Padding takes part in no statistic, so nothing is subtracted there; what reads the output at padding depends
on the statistics all the same, so ``gz`` sums over all tokens and divides by the valid ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from normfuse.nn.affine import scale_and_shift
from normfuse.nn.moments import Tokens, sum_of_tokens
from normfuse.nn.once import differentiable_once
from normfuse.nn.precision import cast
from normfuse.nn.smoothing import put

__all__ = ["GradientState", "SmoothedGradient"]


class GradientState(NamedTuple):
    """What the backward pass needs to know of one batch, and the buffers that it writes.

    Attributes:
        rstd, ratio: (C,).
        skip, is_instant: (), bool.
        place: (), where in the window this batch enters.
    """

    rstd: Tensor
    ratio: Tensor
    skip: Tensor
    is_instant: Tensor
    place: Tensor
    ema: Tensor
    window: Tensor
    momentum: float


class SmoothedGradient(torch.autograd.Function):
    """The forward pass is the plain affine map; see the module for the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, tokens: Tokens, rstd: Tensor, *state: Any) -> Tensor:
        return scale_and_shift(x, cast(weight, rstd.dtype) * rstd, cast(bias, rstd.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, tokens, *state = inputs
        made = GradientState(*state)
        ctx.save_for_backward(x, weight, *made[:_SAVED])
        # Buffers are read as they are in the backward pass, which other passes may have written by then.
        ctx.tokens, ctx.buffers, ctx.bias_dtype = tokens, made[_SAVED:], bias.dtype

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        state = GradientState(*saved, *ctx.buffers)
        dtype = state.rstd.dtype
        dy, z = cast(grads[0], dtype), cast(x, dtype) * state.rstd
        g = dy * (cast(weight, dtype) * state.ratio)
        subtracted = _gradient_statistic(g, z, ctx.tokens, state)
        dx = (g - ctx.tokens.keep(subtracted * z)) * state.rstd
        dweight = sum_of_tokens(dy * z) * state.ratio
        dbias = sum_of_tokens(dy)
        wanted = (cast(dx, x.dtype), cast(dweight, weight.dtype), cast(dbias, ctx.bias_dtype))
        return *wanted, *(None for _ in range(1 + len(state)))


#: The first fields of the state belong to the batch, the others to the layer.
_SAVED = GradientState._fields.index("ema")


def _gradient_statistic(g: Tensor, z: Tensor, tokens: Tokens, state: GradientState) -> Tensor:
    """What multiplies ``z``; the buffers take in this batch."""
    ema, window, skip = cast(state.ema, g.dtype), cast(state.window, g.dtype), state.skip
    gz = tokens.unless_empty(sum_of_tokens(g * z) / tokens.count, ema)
    entered = put(window, state.place, torch.where(skip, ema, gz))
    mean = torch.where(state.is_instant, gz, entered.mean(0))
    new = state.momentum * ema + (1 - state.momentum) * mean
    state.window.copy_(entered)
    state.ema.copy_(new)
    return torch.where(skip, mean, new)
