"""A product behind an RMSNorm: the scale of a row comes out of the loop that reads it.

h = x + residual
y = (h W') * rstd + b,   rstd = 1 / sqrt(mean(h ** 2) + eps)
"""

from __future__ import annotations

import triton
import triton.language as tl

from normfuse.kernels.code.parts import kept, summed

__all__ = ["linear_rows"]


@triton.jit
def linear_rows(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    total: tl.tensor,
    rstds: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    weight_stride: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program j * blocks + i: block i of the outputs of block j of the rows. Those of the first store h."""
    blocks = tl.cdiv(outputs, BLOCK_N)
    row = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    output = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    is_first = tl.program_id(0) % blocks == 0
    x_row = row.to(tl.int64)[:, None] * x_stride
    residual_row = row.to(tl.int64)[:, None] * residual_stride
    weight_row = weight + output.to(tl.int64)[:, None] * weight_stride
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)[None, :]
        inside = (row < rows)[:, None] & (inner < WIDTH)
        a = summed(x, residual, x_row + inner, residual_row + inner, inside)
        kept(total, row.to(tl.int64)[:, None] * WIDTH + inner, a, inside & is_first)
        b = tl.load(weight_row + inner, mask=(output < outputs)[:, None] & (inner < WIDTH), other=0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
        wide = a.to(tl.float32)
        squares += tl.sum(wide * wide, 1)
    rstd = tl.rsqrt(squares / WIDTH + eps)
    value = products * rstd[:, None]
    if bias is not None:
        value += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    y_at = row.to(tl.int64)[:, None] * outputs + output[None, :]
    there = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(y + y_at, value.to(y.dtype.element_ty), mask=there)
    if rstds is not None:
        tl.store(rstds + row, rstd, mask=(row < rows) & is_first)
