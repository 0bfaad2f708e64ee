"""Maps between a vector without a mean and its d - 1 coordinates, in two bases of the zero-mean space.

    drop_last      z = x[:-1],    x = cat(z, -sum(z))
    orthonormal    z = U'x,       x = U z,    U'U = I, U U' = I - 11'/d

``U`` is the Householder reflection of ``1 / sqrt(d) - e_d`` without its last column: it costs one sum.
(Jiang et al. 2023, arXiv 2305.14858, section 3.3, for the first; LAPACK Users' Guide, section 5.4, for
reflections.) All is computed in at least float32 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait, dtype_of
from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import static_size

__all__ = ["AppendSum", "AppendZero", "DropLast", "FromZeroMean", "SubtractLast", "ToZeroMean"]


@dataclass(frozen=True)
class DropLast(ChannelMap):
    """``P = [I 0]``: all channels but the last."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels - 1

    def transposed(self) -> AppendZero:
        return AppendZero()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        return call(graph, aten.slice.Tensor, value, axis, 0, _size(value, axis) - 1)


@dataclass(frozen=True)
class AppendZero(ChannelMap):
    """``P'``: one channel more, of zeros."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels + 1

    def transposed(self) -> DropLast:
        return DropLast()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        zero = call(graph, aten.zeros_like.default, call(graph, aten.slice.Tensor, value, axis, 0, 1))
        return call(graph, aten.cat.default, [value, zero], axis)


@dataclass(frozen=True)
class AppendSum(ChannelMap):
    """``E = [I; -1']``: the vector without a mean of which these are all channels but the last."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels + 1

    def transposed(self) -> SubtractLast:
        return SubtractLast()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        wide = cast(graph, value, opmath(dtype))
        last = call(graph, aten.neg.default, call(graph, aten.sum.dim_IntList, wide, [axis], True))
        return cast(graph, call(graph, aten.cat.default, [wide, last], axis), dtype)


@dataclass(frozen=True)
class SubtractLast(ChannelMap):
    """``E'``: all channels but the last, less the last; to the columns of a weight, ``W E``."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels - 1

    def transposed(self) -> AppendSum:
        return AppendSum()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        first, last = _apart(graph, cast(graph, value, opmath(dtype)), axis)
        return cast(graph, call(graph, aten.sub.Tensor, first, last), dtype)


@dataclass(frozen=True)
class ToZeroMean(ChannelMap):
    """``U'``: ``x[:-1] - (sum(x) / root - x[-1:]) / (root - 1)`` with ``root = sqrt(d)``."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels - 1

    def transposed(self) -> FromZeroMean:
        return FromZeroMean()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype, root = dtype_of(value), sqrt(_size(value, axis))
        wide = cast(graph, value, opmath(dtype))
        first, last = _apart(graph, wide, axis)
        mean = call(graph, aten.div.Tensor, call(graph, aten.sum.dim_IntList, wide, [axis], True), root)
        along = call(graph, aten.div.Tensor, call(graph, aten.sub.Tensor, mean, last), root - 1)
        return cast(graph, call(graph, aten.sub.Tensor, first, along), dtype)


@dataclass(frozen=True)
class FromZeroMean(ChannelMap):
    """``U``: ``cat(z - sum(z) / (d - root), sum(z) / root)`` with ``root = sqrt(d)``."""

    trait = Trait.LINEAR

    def width(self, channels: int) -> int:
        return channels + 1

    def transposed(self) -> ToZeroMean:
        return ToZeroMean()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype, made = dtype_of(value), _size(value, axis) + 1
        wide = cast(graph, value, opmath(dtype))
        total = call(graph, aten.sum.dim_IntList, wide, [axis], True)
        first = call(graph, aten.sub.Tensor, wide, call(graph, aten.div.Tensor, total, made - sqrt(made)))
        last = call(graph, aten.div.Tensor, total, sqrt(made))
        return cast(graph, call(graph, aten.cat.default, [first, last], axis), dtype)


def _apart(graph: Graph, value: Node, axis: int) -> tuple[Node, Node]:
    """All channels but the last, and the last."""
    size = _size(value, axis)
    first = call(graph, aten.slice.Tensor, value, axis, 0, size - 1)
    return first, call(graph, aten.slice.Tensor, value, axis, size - 1, size)


def _size(value: Node, axis: int) -> int:
    size = static_size(value, axis)
    if size is None:
        raise InvariantError(f"the size of axis {axis} of {value.name} is only known when the graph runs")
    return size
