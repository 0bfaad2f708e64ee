"""Maps on one of several axes that a reshape has joined into one, such as the channels of each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.ir.sizes import same_product, shape_of

__all__ = ["Spread", "joined_axis"]


@dataclass(frozen=True)
class Spread(ChannelMap):
    """``I (x) M (x) I``: the map ``inner`` for each of ``before`` runs of ``after`` interleaved vectors.

    Ranges of such channels are not looked into, so that it passes as any linear map does.
    """

    inner: ChannelMap
    before: int
    after: int
    trait = Trait.LINEAR

    @property
    def is_linear(self) -> bool:
        return self.inner.is_linear

    @property
    def sources(self) -> tuple[Node, ...]:
        return self.inner.sources

    def width(self, channels: int) -> int:
        count = self.before * self.after
        return count * self.inner.width(channels // count)

    def transposed(self) -> Spread:
        return replace(self, inner=self.inner.transposed())

    def linear_part(self) -> Spread:
        return replace(self, inner=self.inner.linear_part())

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        sizes = list(shape_of(value) or ())
        apart = call(graph, aten.reshape.default, value, self._apart(sizes, axis))
        made = self.inner.emit(graph, apart, axis + 1)
        sizes[axis] = self.width(sizes[axis])
        return call(graph, aten.reshape.default, made, sizes)

    def _apart(self, sizes: list[Any], axis: int) -> list[Any]:
        parts = [self.before, sizes[axis] // (self.before * self.after), self.after]
        return [*sizes[:axis], *parts, *sizes[axis + 1 :]]


def joined_axis(before: Sequence[Any], after: Sequence[Any], axis: int) -> tuple[int, int, int] | None:
    """The axis of a reshaped value in which ``axis`` and its neighbours have become one.

    With it the number of elements that the joined axes before and behind ``axis`` have. A reshape keeps the
    number of all elements, so what holds on one side of the axis holds on the other.
    """
    for out, first, stop in product(range(len(after)), range(axis + 1), range(axis + 1, len(before) + 1)):
        around = same_product(before[stop:], after[out + 1 :]) or same_product(before[:first], after[:out])
        joined = before[first:stop]
        if around and all(isinstance(size, int) for size in joined) and prod(joined) == after[out]:
            return out, prod(before[first:axis]), prod(before[axis + 1 : stop])
    return None
