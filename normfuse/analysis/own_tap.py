"""What a weight becomes when the values that it reads are added to its result, channel by channel.

W x + A(x) = (W + diag(D)) x + A(0),    D at the tap that leads each channel to itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from normfuse.analysis.channel_map import ChannelMap, Trait, dtype_of
from normfuse.errors import InvariantError
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.sizes import rank_of, shape_of

__all__ = ["OwnTap", "reader_weight"]

_CONVS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip


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


def reader_weight(node: Node, source: Node, axis: int) -> tuple[Node, int] | None:
    """The weight whose middle tap maps each channel of ``source`` onto itself: the sum is of one shape."""
    if is_call(node, aten.linear.default):
        bound = bind(node)
        fits = bound["input"] is source and axis == rank_of(source) - 1
        return (bound["weight"], 1) if fits else None
    if not is_call(node, *_CONVS):
        return None
    bound = bind(node)
    fits = bound["input"] is source and axis == rank_of(source) - (rank_of(bound["weight"]) - 1)
    return (bound["weight"], bound["groups"]) if fits and _is_centred(bound) else None


def _is_centred(bound: dict[str, Any]) -> bool:
    """Whether the middle tap of each output reads the input at the same place."""
    kernel = (shape_of(bound["weight"]) or ())[2:]
    strides, dilation = (_each(bound[name], len(kernel)) for name in ("stride", "dilation"))
    odd = all(isinstance(k, int) and k % 2 == 1 and s == 1 for k, s in zip(kernel, strides, strict=True))
    if bound.get("transposed") or not odd:
        return False
    if isinstance(bound["padding"], str):
        return bound["padding"] == "same" or all(k == 1 for k in kernel)
    padding = _each(bound["padding"], len(kernel))
    return all(p == d * (k // 2) for k, p, d in zip(kernel, padding, dilation, strict=True))


def _each(value: Any, count: int) -> list[Any]:
    """One number for every axis of the kernel."""
    values = list(value)
    return values * count if len(values) == 1 else values
