"""Maps that are any matrix and any shift, for tests: nothing about them is symmetric or commutes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from normfuse.ir.sizes import shape_of

__all__ = ["Dense", "applied", "matrix"]


@dataclass(frozen=True)
class Dense(ChannelMap):
    """``M x + t`` for a matrix ``[m, n]`` and a vector ``[m]`` in the graph; ``flipped``, ``M' x``."""

    matrix: Node
    shift: Node | None = None
    flipped: bool = False
    trait = Trait.LINEAR

    @property
    def is_linear(self) -> bool:
        return self.shift is None

    @property
    def sources(self) -> tuple[Node, ...]:
        return (self.matrix,) if self.shift is None else (self.matrix, self.shift)

    def linear_part(self) -> Dense:
        return replace(self, shift=None)

    def transposed(self) -> Dense:
        return Dense(self.matrix, None, not self.flipped)

    def width(self, channels: int) -> int:
        out, inner = shape_of(self.matrix) or ()
        wanted, made = (out, inner) if self.flipped else (inner, out)
        assert channels == wanted
        return int(made)

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        columns = self.matrix if self.flipped else call(graph, aten.t.default, self.matrix)
        last = len(shape_of(value) or ()) - 1
        made = call(graph, aten.transpose.int, value, axis, last)
        made = call(graph, aten.matmul.default, made, columns)
        if self.shift is not None:
            made = call(graph, aten.add.Tensor, made, self.shift)
        return call(graph, aten.transpose.int, made, axis, last)


def matrix(out: int, inner: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(31 * out + 7 * inner + seed)
    return torch.randn(out, inner, generator=generator, dtype=torch.float64)


def applied(
    value: torch.Tensor, made: torch.Tensor, axis: int, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """The map of a value along an axis, by another way than :meth:`Dense.emit`."""
    moved = torch.tensordot(made.to(value.dtype), value.movedim(axis, 0), dims=1)
    if shift is not None:
        moved = moved + shift.to(value.dtype).reshape([-1] + [1] * (moved.dim() - 1))
    return moved.movedim(0, axis)
