"""A rotation of the channels by a matrix that is in the graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait, dtype_of
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import rank_of

__all__ = ["Rotate"]


@dataclass(frozen=True)
class Rotate(ChannelMap):
    """``Q x`` for an orthogonal matrix ``[d, d]``; ``Q' x`` where ``is_back``.

    (SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024, theorem 1.) Computed in at least float32, rounded once.
    """

    matrix: Node
    is_back: bool = False
    trait = Trait.LINEAR

    @property
    def sources(self) -> tuple[Node, ...]:
        return (self.matrix,)

    def transposed(self) -> Rotate:
        return replace(self, is_back=not self.is_back)

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype, last = dtype_of(value), rank_of(value) - 1
        matrix = cast(graph, self.matrix, opmath(dtype))
        columns = matrix if self.is_back else call(graph, aten.t.default, matrix)
        made = cast(graph, value, opmath(dtype))
        if axis != last:
            made = call(graph, aten.transpose.int, made, axis, last)
        made = call(graph, aten.matmul.default, made, columns)
        if axis != last:
            made = call(graph, aten.transpose.int, made, axis, last)
        return cast(graph, made, dtype)
