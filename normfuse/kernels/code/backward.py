"""Gradients of a norm whose rows fit into registers; ``gradients`` has the equations.

Every program goes over its share of the rows and leaves one float32 row of sums for weight and for bias,
which are added up afterwards in an order that is always the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.gradients import arriving, finish, opened, row_terms
from normfuse.kernels.code.parts import added, factor_of, gated, group_of, kept, normalized, of_row, read

__all__ = ["backward_rows"]


@triton.jit
def backward_rows(
    dy: tl.tensor,
    dtotal: tl.tensor,
    drstds: tl.tensor,
    h: tl.tensor,
    gate: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    centres: tl.tensor,
    rstds: tl.tensor,
    dx: tl.tensor,
    dgate: tl.tensor,
    weight_sums: tl.tensor,
    bias_sums: tl.tensor,
    rows: tl.tensor,
    dy_stride: tl.tensor,
    dtotal_stride: tl.tensor,
    h_stride: tl.tensor,
    gate_stride: tl.tensor,
    KIND: tl.constexpr,
    OFFSET: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (i, g): every tile of ROWS rows whose number leaves i, columns of group g."""
    group = group_of(GROUPS, 1)
    lane = tl.arange(0, BLOCK)[None, :]
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
        out_at = row * (WIDTH * GROUPS) + column
        rstd = of_row(rstds, line * GROUPS + group, rows * GROUPS)
        centre = of_row(centres, line * GROUPS + group, rows * GROUPS)
        drstd = of_row(drstds, line * GROUPS + group, rows * GROUPS)
        value = read(h, row * h_stride + column, inside)
        z = normalized(gated(value, gate, gate_at, inside, GATE_FIRST), centre, rstd, KIND)
        dy_at = row * dy_stride + column
        opened(dy, gate, weight, bias, dgate, z, dy_at, gate_at, out_at, column, inside, GATE_FIRST, OFFSET)
        g = arriving(dy, gate, dy_at, gate_at, inside, z, GATE_FIRST)
        if weight_sums is not None:
            weight_sum += g * z
        if bias_sums is not None:
            bias_sum += g
        g = factor_of(g, weight, column, across, OFFSET)
        along, level = row_terms(g * z, g, drstd, rstd, centre, KIND, WIDTH)
        g = rstd * (g - z * along - level)
        g = finish(g, value, gate, dgate, gate_at, out_at, inside, GATE_FIRST)
        kept(dx, out_at, added(g, dtotal, row * dtotal_stride + column, inside), inside)
    sums_at = tl.program_id(0) * (WIDTH * GROUPS) + column
    kept(weight_sums, sums_at, tl.sum(weight_sum, 0, keep_dims=True), across)
    kept(bias_sums, sums_at, tl.sum(bias_sum, 0, keep_dims=True), across)
