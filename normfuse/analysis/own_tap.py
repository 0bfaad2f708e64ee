"""What a weight becomes when the values that it reads are added to its result, channel by channel.

W x + A(x) = (W + diag(D)) x + A(0),    D at the tap that leads each channel to itself
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait, dtype_of
from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import shape_of

__all__ = ["OwnTap"]


@dataclass(frozen=True)
class OwnTap(ChannelMap):
    """Adds the factors of linear ``maps``, innermost first, to a weight of ``groups`` along its first axis.

    With no maps it adds the identity. The kernel has a middle tap: each of its sizes is odd.
    """

    maps: tuple[ChannelMap, ...]
    groups: int
    trait = Trait.DIAGONAL

    @property
    def sources(self) -> tuple[Node, ...]:
        return tuple(source for mapping in self.maps for source in mapping.sources)

    def transposed(self) -> OwnTap:
        raise InvariantError("OwnTap changes a weight's first axis and has no other side")

    def emit(self, graph: Graph, value: Node, axis: int) -> Node:
        dtype = dtype_of(value)
        out, inner, *kernel = shape_of(value) or ()
        ones = call(graph, aten.new_ones.default, value, [inner])
        made = call(graph, aten.repeat.default, call(graph, aten.diag_embed.default, ones), [self.groups, 1])
        made = cast(graph, made, opmath(dtype))
        for mapping in self.maps:
            made = mapping.emit(graph, made, axis)
        made = call(graph, aten.reshape.default, made, [out, inner, *(1 for _ in kernel)])
        if any(size > 1 for size in kernel):
            margins = [margin for size in reversed(kernel) for margin in (size // 2, size // 2)]
            made = call(graph, aten.constant_pad_nd.default, made, margins)
        return cast(graph, call(graph, aten.add.Tensor, made, value), dtype)
