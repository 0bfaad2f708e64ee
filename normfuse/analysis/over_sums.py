"""Push maps of each channel over a sum, and into a norm that reads it.

    (D x + t) + f = D (x + f / D) + t

The weights that write ``f`` take ``1 / D``. So the scale and shift of a norm with stored statistics pass the
residual sum behind it, in a block whose norms stand behind their sums (Vaswani et al. 2017, arXiv 1706.03762,
section 3.1), up to the next norm. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from normfuse.analysis.absorb import absorb_alone
from normfuse.analysis.channel_map import ChannelMap, Trait, along, dtype_of
from normfuse.analysis.plan import Maps, Plan, Rebuilt, Redirected, linear_parts
from normfuse.analysis.ranges import narrowed
from normfuse.analysis.sums import summands
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import shape_of
from normfuse.report import Refusal

__all__ = ["Crossed", "Divided", "crossed", "image", "takes_maps"]


@dataclass(frozen=True)
class Divided(ChannelMap):
    """``1 / D``, where ``D`` is what linear ``maps`` of each channel do together, innermost first."""

    maps: Maps
    trait = Trait.DIAGONAL

    @property
    def sources(self) -> tuple[Node, ...]:
        return tuple(source for mapping in self.maps for source in mapping.sources)

    def transposed(self) -> Divided:
        return self

    def narrow(self, start: int, length: int) -> Divided:
        return replace(self, maps=narrowed(self.maps, start, length))

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype, channels = dtype_of(value), (shape_of(value) or ())[axis]
        wide = cast(graph, value, opmath(dtype))
        factors = image(graph, self.maps, call(graph, aten.new_ones.default, wide, [channels]))
        return cast(graph, call(graph, aten.div.Tensor, wide, along(graph, factors, value, axis)), dtype)


def image(graph: Graph, maps: Maps, vector: Node) -> Node:
    """What maps make of a vector: their factors of ones, their shift of zeros."""
    for mapping in maps:
        vector = mapping.emit(graph, vector, 0)
    return vector


@dataclass(frozen=True)
class Crossed:
    """``node`` adds ``other`` to values that carry maps on ``axis``; ``plan`` divides it by their factors."""

    node: Node
    axis: int
    maps: Maps
    other: Node
    plan: Plan

    @property
    def changed(self) -> list[Node]:
        """The operators that the plan writes anew."""
        return _changed(self.plan)


def _changed(plan: Plan) -> list[Node]:
    if isinstance(plan, Redirected):
        return [plan.operand, *_changed(plan.plan)]
    if isinstance(plan, Rebuilt):
        return [plan.node, *(node for _, deeper in plan.operands for node in _changed(deeper))]
    return []


def crossed(total: Node, value: Node, axis: int, maps: Maps, weights: WeightValues) -> Crossed | None:
    """How a sum comes to carry ``maps`` of ``value``; None where it cannot, or is no sum."""
    if not all(m.admitted_by(Trait.DIAGONAL) for m in maps) or weights.is_written(total):
        return None
    terms = summands(total)
    others = [node for node, _ in terms or () if node is not value]
    if terms is None or len(others) != 1 or (value, 1.0) not in terms:
        return None
    (other,) = others
    if weights.is_written(other):
        return None
    plan = absorb_alone(other, axis, (Divided(linear_parts(maps)),), weights)
    return None if isinstance(plan, Refusal) else Crossed(total, axis, maps, other, plan)


def takes_maps(user: Node, value: Node, axis: int) -> bool:
    """Whether a norm with stored statistics for the channels on ``axis`` reads the values."""
    region = norm_of(user)
    if region is None or not region.spec.is_stored:
        return False
    return region.other_axes(user) == [axis] and region.is_input(user, value)
