"""A norm whose rows fit into registers: each value is read once and written once.

h = x + residual;   u = h * silu(gate) if GATE_FIRST else h
y = (u - mean) * rstd * (OFFSET + weight) + bias;   y = y * silu(gate) unless GATE_FIRST
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.parts import gated, group_of, kept, normalized, statistics, summed, weighted

__all__ = ["forward_rows"]


@triton.jit
def forward_rows(
    x: tl.tensor,
    residual: tl.tensor,
    gate: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    total: tl.tensor,
    centres: tl.tensor,
    rstds: tl.tensor,
    rows: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    gate_stride: tl.tensor,
    eps: tl.tensor,
    KIND: tl.constexpr,
    OFFSET: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (i, g): rows ``i * ROWS`` and on, columns of group g."""
    group = group_of(GROUPS, 1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    lane = tl.arange(0, BLOCK)[None, :]
    column = group * WIDTH + lane
    inside = (row < rows) & (lane < WIDTH)
    gate_at = row * gate_stride + column
    out_at = row * (WIDTH * GROUPS) + column
    h = summed(x, residual, row * x_stride + column, row * residual_stride + column, inside)
    kept(total, out_at, h, inside)
    u = gated(h.to(tl.float32), gate, gate_at, inside, GATE_FIRST)
    centre, rstd = statistics(u, inside, eps, KIND, WIDTH)
    kept(centres, row * GROUPS + group, centre, row < rows)
    kept(rstds, row * GROUPS + group, rstd, row < rows)
    if y is not None:
        value = weighted(normalized(u, centre, rstd, KIND), weight, bias, column, lane < WIDTH, OFFSET)
        kept(y, out_at, gated(value, gate, gate_at, inside, not GATE_FIRST), inside)
