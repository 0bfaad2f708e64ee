"""Values for the symbolic sizes of a program: those of its stored inputs, and others it also takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from normfuse.verify.signature import Leaf

__all__ = ["Sizes", "concrete", "other_sizes", "stored_sizes"]

#: Larger than any size that is chosen here.
_UNBOUNDED = 1 << 20

#: Symbol (of sympy) -> size.
Sizes = Mapping[Any, int]


def stored_sizes(exported: ExportedProgram, leaves: Sequence[Leaf]) -> dict[Any, int]:
    """The sizes of the stored inputs; small ones within the program's bounds where nothing is stored."""
    found = dict(_observed(leaves))
    open_sizes = (d for leaf in leaves for d in leaf.shape or () if isinstance(d, torch.SymInt))
    symbols = {symbol for size in open_sizes for symbol in size.node.expr.free_symbols}
    for position, symbol in enumerate(sorted(symbols - set(found), key=str)):
        low, high = _range(exported, symbol)
        found[symbol] = min(high, max(low, 2) + 1 + position)
    return found


def other_sizes(exported: ExportedProgram, sizes: Sizes) -> dict[Any, int]:
    """Every size one smaller, or one larger where that is not allowed; never 0 or 1, which are special."""

    def moved(symbol: Any, size: int) -> int:
        low, high = _range(exported, symbol)
        if size - 1 >= max(low, 2):
            return size - 1
        return size + 1 if size + 1 <= high else size

    return {symbol: moved(symbol, size) for symbol, size in sizes.items()}


def concrete(leaf: Leaf, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a leaf as numbers."""
    return tuple(
        int(d.node.expr.subs(dict(sizes))) if isinstance(d, torch.SymInt) else int(d)
        for d in leaf.shape or ()
    )


def _observed(leaves: Sequence[Leaf]) -> Iterator[tuple[Any, int]]:
    for leaf in leaves:
        if leaf.shape is not None and isinstance(leaf.example, torch.Tensor):
            for size, seen in zip(leaf.shape, leaf.example.shape, strict=True):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    yield size.node.expr, int(seen)


def _range(exported: ExportedProgram, symbol: Any) -> tuple[int, int]:
    bounds = exported.range_constraints.get(symbol)
    if bounds is None:
        return 2, _UNBOUNDED
    low, high = (int(b) if b.is_Integer else None for b in (bounds.lower, bounds.upper))
    return low or 0, _UNBOUNDED if high is None else high
