"""Maps on the channel axis: what they are, and which operators let them pass.

A map ``A = M + t`` acts on one axis of a tensor, the same way at every position of the other axes.
Everything that moves maps through graphs asks a map only for its :class:`Trait` and whether it is linear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

import torch
from torch.fx import Graph, Node

from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.rounding import equals_to_rounding
from normfuse.ir.sizes import shape_of, tensor_of
from normfuse.torch_compat import outside_tracing

__all__ = [
    "Centre",
    "ChannelMap",
    "Diagonal",
    "Trait",
    "Window",
    "Within",
    "along",
    "dtype_of",
    "vector",
    "within",
]

#: First channel, and the one behind the last.
Window = tuple[int, int]
#: Rows of a table that are looked at first.
_FEW = 8


class Trait(IntEnum):
    """What an operator asks of a map, from the most to the least permissive."""

    LINEAR = 0
    DIAGONAL = 1


class ChannelMap(ABC):
    """A map ``R^n -> R^m`` on one axis: a linear one, and a shift where ``is_linear`` is False."""

    @property
    @abstractmethod
    def trait(self) -> Trait:
        """The least permissive structure that the map has."""

    @property
    def is_linear(self) -> bool:
        return True

    def width(self, channels: int) -> int:
        """The number of channels that the map makes of so many."""
        return channels

    @abstractmethod
    def transposed(self) -> ChannelMap:
        """``M'`` for ``M x + t``: what the columns of a weight that reads ``M x`` take, from R^m to R^n."""

    @property
    def sources(self) -> tuple[Node, ...]:
        """The values that the map is made of."""
        return ()

    def linear_part(self) -> ChannelMap:
        """The map without its shift."""
        return self

    def narrow(self, start: int, length: int) -> ChannelMap | None:
        """What the map does to a range of channels, each by itself; None where it does nothing to them."""
        raise InvariantError(f"{type(self).__name__} mixes the channels")

    @abstractmethod
    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        """Put the map along ``axis`` of ``value``; the dtype and all sizes but that one stay."""

    def keeps(self, value: torch.Tensor, axis: int) -> bool:
        """Whether these entries are known to be what the map makes of them, but for rounding."""
        return False

    def admitted_by(self, needs: Trait) -> bool:
        """Whether an operator that asks for ``needs`` lets this map pass."""
        return self.trait >= needs


@dataclass(frozen=True)
class Centre(ChannelMap):
    """``C = I - 11'/d``: subtract the mean (Jiang et al. 2023, arXiv 2305.14858, section 3).

    The mean is taken in at least float32 and the difference rounded once.
    """

    trait = Trait.LINEAR

    def transposed(self) -> Centre:
        return self

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        wide = cast(graph, value, opmath(dtype))
        mean = call(graph, aten.mean.dim, wide, [axis], True)
        return cast(graph, call(graph, aten.sub.Tensor, wide, mean), dtype)

    def keeps(self, value: torch.Tensor, axis: int) -> bool:
        with outside_tracing():  # the first rows tell for most tables
            return all(_is_centred(v, axis) for v in (value[: _FEW if axis else None], value))


@dataclass(frozen=True)
class Diagonal(ChannelMap):
    """``diag(s)``: one factor per channel, e.g. LayerScale (Touvron et al. 2021, arXiv 2103.17239, eq. 3)."""

    scale: Node | float
    window: Window | None = None
    trait = Trait.DIAGONAL

    @property
    def sources(self) -> tuple[Node, ...]:
        return (self.scale,) if isinstance(self.scale, Node) else ()

    def transposed(self) -> Diagonal:
        return self

    def narrow(self, start: int, length: int) -> Diagonal:
        return replace(self, window=within(self.window, start, length))

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype, factor = dtype_of(value), self.scale
        if isinstance(factor, Node):
            factor = along(graph, vector(graph, factor, self.window), value, axis)
        return cast(graph, call(graph, aten.mul.Tensor, cast(graph, value, opmath(dtype)), factor), dtype)


@dataclass(frozen=True)
class Within(ChannelMap):
    """A map of ``length`` channels from ``start``; the other channels stay as they are."""

    inner: ChannelMap
    start: int
    length: int

    @property
    def trait(self) -> Trait:
        return self.inner.trait

    @property
    def is_linear(self) -> bool:
        return self.inner.is_linear

    def width(self, channels: int) -> int:
        return channels - self.length + self.inner.width(self.length)

    def transposed(self) -> Within:
        return replace(self, inner=self.inner.transposed(), length=self.inner.width(self.length))

    @property
    def sources(self) -> tuple[Node, ...]:
        return self.inner.sources

    def linear_part(self) -> Within:
        return replace(self, inner=self.inner.linear_part())

    def narrow(self, start: int, length: int) -> ChannelMap | None:
        first, last = max(start, self.start), min(start + length, self.start + self.length)
        inner = self.inner.narrow(first - self.start, last - first) if first < last else None
        if inner is None or (first, last) == (start, start + length):
            return inner
        return Within(inner, first - start, last - first)

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        end = (shape_of(value) or ())[axis]
        cuts = [0, self.start, self.start + self.length, end]
        parts = [call(graph, aten.slice.Tensor, value, axis, a, b) for a, b in pairwise(cuts)]
        parts[1] = self.inner.emit(graph, parts[1], axis)
        return call(graph, aten.cat.default, parts, axis)


def _is_centred(value: torch.Tensor, axis: int) -> bool:
    wide = value.detach().double()
    return equals_to_rounding(value.detach(), wide - wide.mean(axis, keepdim=True))


def within(window: Window | None, start: int, length: int) -> Window:
    """A range of a range."""
    first = start + (0 if window is None else window[0])
    return first, first + length


def vector(graph: Graph, value: Node, window: Window | None) -> Node:
    """A weight with one entry per channel, or one for all, as a vector of the channels in a window."""
    made = call(graph, aten.reshape.default, value, [-1])
    if window is None or (shape_of(made) or ())[0] == 1:
        return made
    return call(graph, aten.slice.Tensor, made, 0, *window)


def along(graph: Graph, entries: Node, value: Node, axis: int) -> Node:
    """A vector with as many axes as ``value``, its entries along ``axis``."""
    shape = [1] * len(shape_of(value) or ())
    shape[axis] = -1
    return call(graph, aten.reshape.default, entries, shape)


def dtype_of(value: Node) -> torch.dtype:
    """The dtype of a value that is one tensor."""
    fake = tensor_of(value)
    assert fake is not None
    return fake.dtype
