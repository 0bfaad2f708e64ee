"""Maps on the channel axis: what they are, and which operators let them pass.

A map ``A = M + t`` acts on one axis of a tensor, the same way at every position of the other axes.
Everything that moves maps through graphs asks a map only for its :class:`Trait` and whether it is linear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import shape_of, tensor_of

__all__ = ["Centre", "ChannelMap", "Diagonal", "Trait", "along", "dtype_of"]


class Trait(IntEnum):
    """What an operator asks of a map, from the most to the least permissive."""

    LINEAR = 0
    DIAGONAL = 1


class ChannelMap(ABC):
    """A map on one axis: a linear one, and a shift where ``is_linear`` is False."""

    trait: Trait

    @property
    def is_linear(self) -> bool:
        return True

    @property
    def sources(self) -> tuple[Node, ...]:
        """The values that the map is made of."""
        return ()

    def linear_part(self) -> ChannelMap:
        """The map without its shift."""
        return self

    @abstractmethod
    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        """Put the map along ``axis`` of ``value`` into a graph; shape and dtype stay."""

    def admitted_by(self, needs: Trait) -> bool:
        """Whether an operator that asks for ``needs`` lets this map pass."""
        return self.trait >= needs


@dataclass(frozen=True)
class Centre(ChannelMap):
    """``C = I - 11'/d``: subtract the mean (Jiang et al. 2023, arXiv 2305.14858, section 3).

    The mean is taken in at least float32 and the difference rounded once.
    """

    trait = Trait.LINEAR

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        wide = cast(graph, value, opmath(dtype))
        mean = call(graph, aten.mean.dim, wide, [axis], True)
        return cast(graph, call(graph, aten.sub.Tensor, wide, mean), dtype)


@dataclass(frozen=True)
class Diagonal(ChannelMap):
    """``diag(s)``: one factor per channel, e.g. LayerScale (Touvron et al. 2021, arXiv 2103.17239, eq. 3)."""

    scale: Node | float
    trait = Trait.DIAGONAL

    @property
    def sources(self) -> tuple[Node, ...]:
        return (self.scale,) if isinstance(self.scale, Node) else ()

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        factor = along(graph, self.scale, value, axis) if isinstance(self.scale, Node) else self.scale
        return cast(graph, call(graph, aten.mul.Tensor, cast(graph, value, opmath(dtype)), factor), dtype)


def along(graph: Graph, vector: Node, value: Node, axis: int) -> Node:
    """A vector with as many axes as ``value``, its entries along ``axis``."""
    shape = [1] * len(shape_of(value) or ())
    shape[axis] = -1
    return call(graph, aten.reshape.default, vector, shape)


def dtype_of(value: Node) -> torch.dtype:
    """The dtype of a value that is one tensor."""
    fake = tensor_of(value)
    assert fake is not None
    return fake.dtype
