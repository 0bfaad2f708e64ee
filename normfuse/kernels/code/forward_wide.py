"""A norm whose rows are too wide for registers: one program a row, which it reads twice, in blocks.

The second reading finds the row in the caches. The variance is summed around the mean of the row's first
block. That block is a part 1 / k of the row, so the square of its distance to the row's mean is at most
k - 1 times the variance, and the difference of sums loses no more than a factor k of float32's precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.parts import gated, group_of, kept, normalized, summed, weighted

__all__ = ["forward_wide"]


@triton.jit
def _finished(
    sums: tl.tensor,
    squares: tl.tensor,
    shift: tl.tensor,
    eps: tl.tensor,
    KIND: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """``(mean or sum or zero, 1 / root)`` from the sums of a row's lanes around ``shift``."""
    first = tl.sum(sums, 1, keep_dims=True)
    second = tl.sum(squares, 1, keep_dims=True)
    if KIND == 1:
        centre = shift + first / WIDTH
        square = tl.maximum(second - first * (first / WIDTH), 0.0) / WIDTH
    elif KIND == 2:
        centre = first
        square = (second + first * first) / (WIDTH + 1)
    else:
        centre = first
        square = second / WIDTH
    return centre, tl.rsqrt(square + eps)


@triton.jit
def forward_wide(
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
    """Program (i, g): row i, columns of group g. ``ROWS`` is 1."""
    group = group_of(GROUPS, 1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    lane = tl.arange(0, BLOCK)[None, :]
    x_row = row * x_stride + group * WIDTH
    residual_row = row * residual_stride + group * WIDTH
    gate_row = row * gate_stride + group * WIDTH
    out_row = row * (WIDTH * GROUPS) + group * WIDTH
    shift = tl.zeros([ROWS, 1], tl.float32)
    if KIND == 1:
        first = summed(x, residual, x_row + lane, residual_row + lane, lane < WIDTH).to(tl.float32)
        first = gated(first, gate, gate_row + lane, lane < WIDTH, GATE_FIRST)
        shift = tl.sum(first, 1, keep_dims=True) / min(BLOCK, WIDTH)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(0, WIDTH, BLOCK, disable_licm=True):
        at = start + lane
        inside = at < WIDTH
        h = summed(x, residual, x_row + at, residual_row + at, inside)
        kept(total, out_row + at, h, inside)
        u = gated(h.to(tl.float32), gate, gate_row + at, inside, GATE_FIRST)
        if KIND == 1:
            u = tl.where(inside, u - shift, 0.0)
        if KIND != 0:
            sums += u
        squares += u * u
    centre, rstd = _finished(sums, squares, shift, eps, KIND, WIDTH)
    kept(centres, row * GROUPS + group, centre, row < rows)
    kept(rstds, row * GROUPS + group, rstd, row < rows)
    if y is not None:
        for start in tl.range(0, WIDTH, BLOCK, disable_licm=True):
            at = start + lane
            inside = at < WIDTH
            u = summed(x, residual, x_row + at, residual_row + at, inside).to(tl.float32)
            u = gated(u, gate, gate_row + at, inside, GATE_FIRST)
            value = normalized(u, centre, rstd, KIND)
            value = weighted(value, weight, bias, group * WIDTH + at, inside, OFFSET)
            kept(y, out_row + at, gated(value, gate, gate_row + at, inside, not GATE_FIRST), inside)
