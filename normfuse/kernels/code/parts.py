"""What several kernels share: loads widened to float32, the gate, and the statistics of rows in registers.

Nothing is moved out of a kernel's loop over tiles or blocks (``disable_licm``): the addresses that would wait
in registers for their next turn are what did not fit into them.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "added",
    "factor_of",
    "gated",
    "group_of",
    "kept",
    "normalized",
    "of_row",
    "read",
    "silu",
    "silu_slope",
    "statistics",
    "summed",
    "weighted",
]


@triton.jit
def group_of(GROUPS: tl.constexpr, AXIS: tl.constexpr) -> tl.tensor:
    """The number of a program's group, which takes no register where there is one group alone."""
    group = 0
    if GROUPS > 1:
        group = tl.program_id(AXIS)
    return group


@triton.jit
def read(source: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Values at ``at`` in float32; zero where ``inside`` is false."""
    return tl.load(source + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def kept(target: tl.tensor, at: tl.tensor, value: tl.tensor, inside: tl.tensor) -> None:
    """Store ``value`` in the dtype of ``target``, which may be None."""
    if target is not None:
        tl.store(target + at, value.to(target.dtype.element_ty), mask=inside)


@triton.jit
def of_row(source: tl.tensor, line: tl.tensor, rows: tl.tensor) -> tl.tensor:
    """One float32 number for each of the lines, as a column; zeros where there are none.

    A load of one dimension is one instruction a thread; of two, one for each column that the thread holds.
    """
    value = tl.zeros_like(line).to(tl.float32)
    if source is not None:
        value = tl.load(source + line, mask=line < rows, other=0.0)
    return value[:, None]


@triton.jit
def summed(
    x: tl.tensor, residual: tl.tensor, x_at: tl.tensor, residual_at: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """``x + residual`` in the dtype of ``x``, rounded once as PyTorch rounds it; or ``x``."""
    value = tl.load(x + x_at, mask=inside, other=0.0)
    if residual is not None:
        other = tl.load(residual + residual_at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(x.dtype.element_ty)
    return value


@triton.jit
def added(value: tl.tensor, source: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """``value`` plus what stands at ``at``, if there is a source."""
    if source is not None:
        value = value + read(source, at, inside)
    return value


@triton.jit
def silu(z: tl.tensor) -> tl.tensor:
    """``z * sigmoid(z)``"""
    return z * tl.sigmoid(z)


@triton.jit
def silu_slope(z: tl.tensor) -> tl.tensor:
    """The derivative of ``silu``."""
    s = tl.sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@triton.jit
def gated(
    value: tl.tensor, gate: tl.tensor, at: tl.tensor, inside: tl.tensor, APPLIES: tl.constexpr
) -> tl.tensor:
    """``value * silu(gate)`` where there is a gate and this is its place."""
    if APPLIES:
        if gate is not None:
            value = value * silu(read(gate, at, inside))
    return value


@triton.jit
def statistics(
    h: tl.tensor, inside: tl.tensor, eps: tl.tensor, KIND: tl.constexpr, WIDTH: tl.constexpr
) -> tl.tensor:
    """``(mean or sum or zero, 1 / root)`` of the rows of a tile; two passes over registers for a variance."""
    if KIND == 1:
        centre = tl.sum(h, 1, keep_dims=True) / WIDTH
        away = tl.where(inside, h - centre, 0.0)
        square = tl.sum(away * away, 1, keep_dims=True) / WIDTH
    elif KIND == 2:
        centre = tl.sum(h, 1, keep_dims=True)
        square = (tl.sum(h * h, 1, keep_dims=True) + centre * centre) / (WIDTH + 1)
    else:
        square = tl.sum(h * h, 1, keep_dims=True) / WIDTH
        centre = tl.zeros_like(square)
    return centre, tl.rsqrt(square + eps)


@triton.jit
def normalized(u: tl.tensor, centre: tl.tensor, rstd: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """``(u - mean) * rstd``, without the mean where there is none."""
    if KIND == 1:
        u = u - centre
    return u * rstd


@triton.jit
def weighted(
    value: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    OFFSET: tl.constexpr,
) -> tl.tensor:
    """``value * (OFFSET + weight) + bias``, without what is None."""
    value = factor_of(value, weight, column, inside, OFFSET)
    return added(value, bias, column, inside)


@triton.jit
def factor_of(
    value: tl.tensor, weight: tl.tensor, column: tl.tensor, inside: tl.tensor, OFFSET: tl.constexpr
) -> tl.tensor:
    """``value * (OFFSET + weight)``, or ``value``."""
    if weight is not None:
        value = value * (read(weight, column, inside) + OFFSET)
    return value
