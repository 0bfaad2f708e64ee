"""How a kernel is cut into programs: block, warps and rows a program, from the sizes alone.

Nothing is tried out while a model compiles. The rules follow from the hardware: a thread reads 16 bytes at a
time, a multiprocessor has 65,536 registers, and a program should have enough bytes under way to hide the
latency of the memory. What each choice costs in registers is in ``bench/results/kernels/compile.json``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearPlan", "Plan", "backward_plan", "column_plan", "forward_plan", "linear_plans"]

#: Widest rows that stay in registers: 16 float32 values a thread forward; backward two tiles and two sums.
FORWARD_LIMIT = 16384
BACKWARD_LIMIT = 8192
#: Values of one tile where rows are narrow: enough for 4 warps to read 16 bytes in bfloat16 each.
_TILE = 1024
_WIDE_BLOCK = 4096


@dataclass(frozen=True)
class Plan:
    """Attributes:
    block: columns of a tile, a power of two.
    rows: rows of a tile, a power of two.
    warps: warps of a program.
    is_wide: whether a row is read in several blocks.
    """

    block: int
    rows: int
    warps: int
    is_wide: bool = False


@dataclass(frozen=True)
class LinearPlan:
    """Tile of a product: ``block_m`` rows, ``block_n`` outputs, ``block_k`` inputs at a time."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def forward_plan(width: int) -> Plan:
    """For rows of ``width`` values that share statistics."""
    if width > FORWARD_LIMIT:
        return Plan(_WIDE_BLOCK, 1, 16, is_wide=True)
    return _in_registers(width, values_a_thread=16)


def backward_plan(width: int) -> Plan:
    """The same for gradients, which hold several tiles at once: half as many values a thread."""
    if width > BACKWARD_LIMIT:
        return Plan(_WIDE_BLOCK, 1, 16, is_wide=True)
    return _in_registers(width, values_a_thread=8)


def column_plan(width: int) -> Plan:
    """Sums over rows of one block of columns of a wide row."""
    return Plan(min(_TILE, _power(width)), 4, 8, is_wide=True)


def linear_plans(rows: int, outputs: int) -> tuple[LinearPlan, ...]:
    """A short list for ``rows`` rows, the one that is taken first.

    Few rows read the weight once and are bound by memory: many small programs with long steps. Many rows
    are bound by arithmetic: square tiles.
    """
    if rows <= 16:
        return (
            LinearPlan(16, 32, 256, 4, 3),
            LinearPlan(16, 64, 128, 4, 4),
            LinearPlan(16, 16, 256, 4, 4),
        )
    if rows <= 64:
        return LinearPlan(32, 64, 128, 4, 3), LinearPlan(64, 32, 128, 4, 3)
    if rows <= 512 or outputs <= 512:
        return LinearPlan(64, 64, 64, 4, 4), LinearPlan(64, 128, 64, 4, 3)
    return LinearPlan(128, 128, 64, 8, 3), LinearPlan(128, 64, 64, 4, 4)


def _in_registers(width: int, values_a_thread: int) -> Plan:
    block = _power(width)
    rows = max(1, min(_TILE // block, 64))
    warps = max(4, min(32, block * rows // (32 * values_a_thread)))
    return Plan(block, rows, warps)


def _power(width: int) -> int:
    return 1 << max(0, width - 1).bit_length()
