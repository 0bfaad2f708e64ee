"""The arithmetic of the gradients, for a tile of whole rows and for a part of a row.

With z the normalized row, g = dy * (OFFSET + weight), and n the number of values that the mean is taken of:

    c1 = (sum(g * z) + drstd * rstd) / n
    c2 = mean(g) (LayerNorm), c1 * rstd * sum(u) (CRMSNorm), 0 (RMSNorm)
    du = rstd * (g - z * c1 - c2)
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.parts import gated, kept, read, silu, silu_slope, weighted

__all__ = ["arriving", "finish", "opened", "row_terms"]


@triton.jit
def arriving(
    dy: tl.tensor,
    gate: tl.tensor,
    dy_at: tl.tensor,
    gate_at: tl.tensor,
    inside: tl.tensor,
    like: tl.tensor,
    GATE_FIRST: tl.constexpr,
) -> tl.tensor:
    """The gradient that arrives behind weight and bias."""
    g = tl.zeros_like(like)
    if dy is not None:
        g = gated(read(dy, dy_at, inside), gate, gate_at, inside, not GATE_FIRST)
    return g


@triton.jit
def row_terms(
    products: tl.tensor,
    levels: tl.tensor,
    drstd: tl.tensor,
    rstd: tl.tensor,
    centre: tl.tensor,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """``(c1, c2)`` of rows, from ``g * z`` and ``g`` of their lanes."""
    along = tl.sum(products, 1, keep_dims=True) + drstd * rstd
    if KIND == 1:
        along = along / WIDTH
        level = tl.sum(levels, 1, keep_dims=True) / WIDTH
    elif KIND == 2:
        along = along / (WIDTH + 1)
        level = along * rstd * centre
    else:
        along = along / WIDTH
        level = tl.zeros_like(along)
    return along, level


@triton.jit
def opened(
    dy: tl.tensor,
    gate: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    dgate: tl.tensor,
    z: tl.tensor,
    dy_at: tl.tensor,
    gate_at: tl.tensor,
    out_at: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    GATE_FIRST: tl.constexpr,
    OFFSET: tl.constexpr,
) -> None:
    """The gradient of a gate behind the norm: ``dy * (z * (OFFSET + weight) + bias) * silu'(gate)``."""
    if gate is not None:
        if not GATE_FIRST:
            value = tl.zeros_like(z)
            if dy is not None:
                value = weighted(z, weight, bias, column, inside, OFFSET) * read(dy, dy_at, inside)
                value = value * silu_slope(read(gate, gate_at, inside))
            kept(dgate, out_at, value, inside)


@triton.jit
def finish(
    du: tl.tensor,
    h: tl.tensor,
    gate: tl.tensor,
    dgate: tl.tensor,
    gate_at: tl.tensor,
    out_at: tl.tensor,
    inside: tl.tensor,
    GATE_FIRST: tl.constexpr,
) -> tl.tensor:
    """The gradient of h; where the gate comes first, its own as well: ``du * h * silu'(gate)``."""
    if gate is not None:
        if GATE_FIRST:
            control = read(gate, gate_at, inside)
            kept(dgate, out_at, du * h * silu_slope(control), inside)
            du = du * silu(control)
    return du
