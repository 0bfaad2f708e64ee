"""The gradient of the input of a norm whose rows are too wide for registers; ``gradients`` has the equations.

One program a row, which reads it twice: once for the two sums, once for the gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.gradients import arriving, finish, opened, row_terms
from normfuse.kernels.code.parts import added, factor_of, gated, group_of, kept, normalized, of_row, read

__all__ = ["backward_wide"]


@triton.jit
def backward_wide(
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
    """Program (i, g): row i, columns of group g. ``ROWS`` is 1."""
    group = group_of(GROUPS, 1)
    line = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    row = line[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    dy_row = row * dy_stride + group * WIDTH
    dtotal_row = row * dtotal_stride + group * WIDTH
    h_row = row * h_stride + group * WIDTH
    gate_row = row * gate_stride + group * WIDTH
    out_row = row * (WIDTH * GROUPS) + group * WIDTH
    rstd = of_row(rstds, line * GROUPS + group, rows * GROUPS)
    centre = of_row(centres, line * GROUPS + group, rows * GROUPS)
    drstd = of_row(drstds, line * GROUPS + group, rows * GROUPS)
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    levels = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(0, WIDTH, BLOCK, disable_licm=True):
        at = start + lane
        inside = at < WIDTH
        u = gated(read(h, h_row + at, inside), gate, gate_row + at, inside, GATE_FIRST)
        z = normalized(u, centre, rstd, KIND)
        g = arriving(dy, gate, dy_row + at, gate_row + at, inside, z, GATE_FIRST)
        g = factor_of(g, weight, group * WIDTH + at, inside, OFFSET)
        products += g * z
        if KIND == 1:
            levels += g
    along, level = row_terms(products, levels, drstd, rstd, centre, KIND, WIDTH)
    for start in tl.range(0, WIDTH, BLOCK, disable_licm=True):
        at = start + lane
        inside = at < WIDTH
        column = group * WIDTH + at
        gate_at = gate_row + at
        value = read(h, h_row + at, inside)
        z = normalized(gated(value, gate, gate_at, inside, GATE_FIRST), centre, rstd, KIND)
        opened(
            dy,
            gate,
            weight,
            bias,
            dgate,
            z,
            dy_row + at,
            gate_at,
            out_row + at,
            column,
            inside,
            GATE_FIRST,
            OFFSET,
        )
        g = arriving(dy, gate, dy_row + at, gate_at, inside, z, GATE_FIRST)
        g = factor_of(g, weight, column, inside, OFFSET)
        g = rstd * (g - z * along - level)
        g = finish(g, value, gate, dgate, gate_at, out_row + at, inside, GATE_FIRST)
        kept(dx, out_row + at, added(g, dtotal, dtotal_row + at, inside), inside)
