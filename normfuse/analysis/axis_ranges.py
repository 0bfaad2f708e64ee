"""An axis as the axes that a reshape has joined to it, or takes out of it, with a range of each.

Channels that are looked for may lie in a range of one of them; a map of these channels is a map of the axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from normfuse.analysis.channel_map import ChannelMap, Within
from normfuse.analysis.spread_map import Spread

__all__ = ["AxisRange", "AxisRanges", "has_channels", "is_fixed", "is_outermost", "lifted", "positions"]


@dataclass(frozen=True)
class AxisRange:
    """One of the axes that an axis is made of, the outermost first: ``length`` positions from ``start``.

    All of them without a ``length``. They may be made of axes themselves, ``inner``. ``holds`` marks the
    channels that are looked for.
    """

    size: Any
    start: int = 0
    length: int | None = None
    inner: tuple[AxisRange, ...] = ()
    holds: bool = False

    def positions(self) -> list[int]:
        length = self.size if self.length is None else self.length
        return [self.start + at for at in (positions(self.inner) if self.inner else range(length))]


AxisRanges = tuple[AxisRange, ...]


def positions(factors: Sequence[AxisRange]) -> list[int]:
    """The places of a joined axis that are selected."""
    found = [0]
    for factor in factors:
        found = [at * factor.size + place for at in found for place in factor.positions()]
    return found


def has_channels(factor: AxisRange) -> bool:
    """Whether the channels that are looked for are in it."""
    return factor.holds or any(map(has_channels, factor.inner))


def is_fixed(factors: AxisRanges) -> bool:
    """Whether all sizes are plain numbers."""
    return all(isinstance(f.size, int) and is_fixed(f.inner) for f in factors)


def is_outermost(factors: AxisRanges) -> bool:
    """Whether nothing is selected of an axis inside the channels."""
    (at,) = [i for i, f in enumerate(factors) if has_channels(f)]
    return all(f.length is None for f in factors[at + 1 :]) and (
        not factors[at].inner or is_outermost(factors[at].inner)
    )


def lifted(mapping: ChannelMap, factors: AxisRanges) -> ChannelMap:
    """The map of the axis that is ``mapping`` of the channels, and leaves everything else as it is."""
    (at,) = [i for i, f in enumerate(factors) if has_channels(f)]
    own, behind = factors[at], prod(f.size for f in factors[at + 1 :])
    if own.inner:
        mapping = lifted(mapping, own.inner)
    mapping = mapping if own.length is None else Within(mapping, own.start, own.length)
    mapping = mapping if behind == 1 else Spread(mapping, 1, behind)
    width = own.size * behind
    for factor in reversed(factors[:at]):
        count = factor.size if factor.length is None else factor.length
        mapping = mapping if count == 1 else Spread(mapping, count, 1)
        if factor.length is not None:
            mapping = Within(mapping, factor.start * width, factor.length * width)
        width *= factor.size
    return mapping
