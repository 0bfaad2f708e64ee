"""Maps that scale each channel and add to it: what a norm with stored statistics does."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait, Window, along, dtype_of, vector, within
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.region import Operands

__all__ = ["Standardise"]


@dataclass(frozen=True)
class Standardise(ChannelMap):
    """``(x - mean) * scale / sqrt(variance + eps) + shift + skip * x``, each operand where there is one.

    Batch norm in evaluation (Ioffe, Szegedy 2015, algorithm 2). Computed in at least float32 and rounded
    once.
    """

    eps: float
    scale: Node | None = None
    shift: Node | None = None
    mean: Node | None = None
    variance: Node | None = None
    skip: Node | None = None
    window: Window | None = None
    trait = Trait.DIAGONAL

    @classmethod
    def of(cls, operands: Operands, eps: float) -> Standardise:
        """The map of a norm with these operands."""
        o = operands
        return cls(eps, o.scale, o.shift, o.mean, o.variance, o.skip)

    @property
    def is_linear(self) -> bool:
        return self.mean is None and self.shift is None

    def linear_part(self) -> Standardise:
        return replace(self, mean=None, shift=None)

    def transposed(self) -> Standardise:
        return self.linear_part()

    def narrow(self, start: int, length: int) -> Standardise:
        return replace(self, window=within(self.window, start, length))

    @property
    def sources(self) -> tuple[Node, ...]:
        held = (self.scale, self.shift, self.mean, self.variance, self.skip)
        return tuple(n for n in held if n is not None)

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        wide = made = cast(graph, value, opmath(dtype))
        if self.mean is not None:
            made = call(graph, aten.sub.Tensor, made, self._along(graph, self.mean, value, axis))
        factor = self._factor(graph)
        if factor is not None:
            made = call(graph, aten.mul.Tensor, made, along(graph, factor, value, axis))
        if self.shift is not None:
            made = call(graph, aten.add.Tensor, made, self._along(graph, self.shift, value, axis))
        if self.skip is not None:
            added = call(graph, aten.mul.Tensor, wide, self._along(graph, self.skip, value, axis))
            made = call(graph, aten.add.Tensor, made, added)
        return cast(graph, made, dtype)

    def _along(self, graph: Graph, entries: Node, value: Node, axis: int) -> Node:
        return along(graph, vector(graph, entries, self.window), value, axis)

    def _factor(self, graph: Graph) -> Node | None:
        """``scale / sqrt(variance + eps)``, in the dtype of the statistics."""
        scale = None if self.scale is None else vector(graph, self.scale, self.window)
        if self.variance is None:
            return scale
        variance = vector(graph, self.variance, self.window)
        variance = cast(graph, variance, opmath(dtype_of(variance)))
        root = call(graph, aten.rsqrt.default, call(graph, aten.add.Tensor, variance, self.eps))
        return root if scale is None else call(graph, aten.mul.Tensor, root, scale)
