"""Gradients of weight and bias where rows are too wide for registers: float32 sums of a block of columns."""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.gradients import arriving
from normfuse.kernels.code.parts import gated, group_of, kept, normalized, of_row, read

__all__ = ["backward_columns"]


@triton.jit
def backward_columns(
    dy: tl.tensor,
    h: tl.tensor,
    gate: tl.tensor,
    centres: tl.tensor,
    rstds: tl.tensor,
    weight_sums: tl.tensor,
    bias_sums: tl.tensor,
    rows: tl.tensor,
    dy_stride: tl.tensor,
    h_stride: tl.tensor,
    gate_stride: tl.tensor,
    KIND: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (i, j, g): every tile of ROWS rows whose number leaves i, block j of the columns of group g."""
    group = group_of(GROUPS, 2)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    column = group * WIDTH + lane
    across = lane < WIDTH
    weight_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    bias_sum = tl.zeros([ROWS, BLOCK], tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), disable_licm=True):
        line = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        row = line[:, None]
        there = row < rows
        inside = there & across
        gate_at = row * gate_stride + column
        rstd = of_row(rstds, line * GROUPS + group, rows * GROUPS)
        centre = of_row(centres, line * GROUPS + group, rows * GROUPS)
        value = read(h, row * h_stride + column, inside)
        z = normalized(gated(value, gate, gate_at, inside, GATE_FIRST), centre, rstd, KIND)
        g = arriving(dy, gate, row * dy_stride + column, gate_at, inside, z, GATE_FIRST)
        if weight_sums is not None:
            weight_sum += g * z
        if bias_sums is not None:
            bias_sum += g
    sums_at = tl.program_id(0) * (WIDTH * GROUPS) + column
    kept(weight_sums, sums_at, tl.sum(weight_sum, 0, keep_dims=True), across)
    kept(bias_sums, sums_at, tl.sum(bias_sum, 0, keep_dims=True), across)
