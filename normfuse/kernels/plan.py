"""How a kernel is cut into programs: block, warps and rows a program, from the sizes alone.

Each list is short, and its first entry is what the hardware suggests: a thread reads 16 bytes at a time, a
multiprocessor has 65,536 registers, and a program should have enough bytes under way to hide the latency of
the memory. ``choice`` says which entry is taken. What each costs in registers is in
``bench/results/kernels/compile.json``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearPlan", "Plan", "backward_plan", "column_plan", "forward_plans", "linear_plans"]

#: Widest rows that stay in registers: 16 float32 values a thread forward; backward two tiles and two sums.
FORWARD_LIMIT = 16384
BACKWARD_LIMIT = 8192
#: Columns of a row that is read in several blocks: 8 values a thread.
_FORWARD_BLOCK, _BACKWARD_BLOCK = 8192, 4096
_COLUMNS = 1024
_LEAST, _MOST = 4, 32


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


def forward_plans(width: int) -> tuple[Plan, ...]:
    """For rows of ``width`` values that share statistics."""
    if width > FORWARD_LIMIT:
        return (_in_blocks(_FORWARD_BLOCK),)
    return _in_registers(width, 16 if width > 1024 else 8, 8 if width > 1024 else 16)


def backward_plan(width: int, itemsize: int) -> Plan:
    """The same for gradients, which hold several tiles at once: 16 bytes of each a thread.

    There is one: with half as many warps some kernels spill, as they do with 4 where several rows share a
    program; with twice as many they read 8 bytes at a time.
    """
    if width > BACKWARD_LIMIT:
        return _in_blocks(_BACKWARD_BLOCK)
    values = 16 // itemsize
    are_several = 2 * _power(width) <= _LEAST * 32 * values
    return _in_registers(width, values, least=2 * _LEAST if are_several else _LEAST)[0]


def column_plan(width: int) -> Plan:
    """Sums over rows of one block of columns of a wide row."""
    return Plan(min(_COLUMNS, _power(width)), 4, 8, is_wide=True)


#: Tiles of products, with warps and stages, by the bytes of a number and for up to so many rows. Wider ones
#: take more registers and shared memory; no compiler that was tried spills any of these.
_PRODUCTS = {
    2: {
        16: ((16, 32, 256, 4, 3), (16, 64, 128, 4, 4), (16, 16, 256, 4, 4)),
        64: ((32, 64, 128, 4, 3), (64, 32, 128, 4, 3)),
        512: ((64, 64, 64, 4, 4), (64, 128, 64, 8, 3)),
        None: ((128, 128, 64, 8, 3), (128, 64, 64, 8, 3)),
    },
    4: {
        16: ((16, 32, 64, 4, 3), (16, 64, 64, 4, 4), (16, 16, 128, 4, 4)),
        64: ((32, 64, 64, 4, 3), (32, 32, 64, 4, 3)),
        512: ((64, 64, 32, 4, 4), (64, 64, 32, 8, 3)),
        None: ((128, 64, 32, 8, 2), (64, 64, 32, 8, 3)),
    },
}


def linear_plans(rows: int, outputs: int, itemsize: int) -> tuple[LinearPlan, ...]:
    """A short list for ``rows`` rows, the one that is taken first.

    Few rows read the weight once and are bound by memory: many small programs with long steps. Many rows
    are bound by arithmetic: square tiles, but for few outputs, which would leave most of a device idle.
    """
    if rows <= 16:
        size: int | None = 16
    elif rows <= 64:
        size = 64
    else:
        size = 512 if rows <= 512 or outputs <= 512 else None
    return tuple(LinearPlan(*one) for one in _PRODUCTS[2 if itemsize == 2 else 4][size])


def _in_registers(width: int, *values: int, least: int = _LEAST) -> tuple[Plan, ...]:
    """With so many values a thread, as far as there are threads for them; narrow rows share a program."""
    block, found = _power(width), list[Plan]()
    for each in values:
        rows = max(1, min(least * 32 * each // block, 64))
        found.append(Plan(block, rows, max(_LEAST, min(_MOST, block * rows // (32 * each)))))
    return tuple(dict.fromkeys(found))


def _in_blocks(block: int) -> Plan:
    return Plan(block, 1, block // (32 * 8), is_wide=True)


def _power(width: int) -> int:
    return 1 << max(0, width - 1).bit_length()
