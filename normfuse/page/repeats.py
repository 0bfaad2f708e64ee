"""Runs of equal layers in a sequence, found by what repeats and not by what it is called."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

__all__ = ["Run", "runs"]

#: Layers of more parts than this are not looked for.
_LONGEST = 64


class Run(NamedTuple):
    """``turns`` times the same ``length`` items, from ``start`` on."""

    start: int
    length: int
    turns: int


def runs(keys: Sequence[Hashable]) -> list[Run]:
    """The sequence as runs without gaps; each covers the most from its start, and is the shortest."""
    found, start = [], 0
    while start < len(keys):
        best = Run(start, 1, 1)
        for length in range(1, min(_LONGEST, (len(keys) - start) // 2) + 1):
            count = _repeats(keys, start, length)
            if count > 1 and count * length > best.turns * best.length:
                best = Run(start, length, count)
        found.append(best)
        start += best.length * best.turns
    return found


def _repeats(keys: Sequence[Hashable], start: int, length: int) -> int:
    end = start + length
    while end < len(keys) and keys[end] == keys[end - length]:
        end += 1
    return (end - start) // length
