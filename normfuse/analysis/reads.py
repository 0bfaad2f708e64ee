"""What a weight takes that reads channels which maps are taken from.

W (M x + t) + b = (W M) x + (b + W t),    W M = (M' W')'
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.analysis.channel_map import dtype_of
from normfuse.analysis.contraction import Reading
from normfuse.analysis.plan import Leaf, Maps, transposed
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import CASTS, bind, is_call
from normfuse.ir.location import described
from normfuse.ir.sizes import lies_alike, shape_of, widened_by
from normfuse.report import Refusal

__all__ = ["Read", "absorbed", "before_rounding"]


@dataclass(frozen=True)
class Read:
    """``node`` contracts the channels with its operand ``weight``, along ``leaf.axis`` of it.

    ``leaf`` has what the weight takes, the transposes of the linear parts of ``maps``, before it is rounded
    to the dtype in which it is read. The operand ``bias`` takes what the weight makes of the shift, where the
    maps have one, as ``reading`` says.
    """

    node: Node
    weight: str
    leaf: Leaf
    maps: Maps
    bias: str
    reading: Reading

    @property
    def has_shift(self) -> bool:
        return not all(m.is_linear for m in self.maps)

    @property
    def dtype(self) -> torch.dtype:
        """That in which the weight is read."""
        return dtype_of(self.reading.weight.node)

    @property
    def channels(self) -> int:
        """The number of channels that the maps read."""
        count: int = (shape_of(self.leaf.node) or ())[self.leaf.axis] * self.leaf.groups
        for mapping in self.leaf.maps:
            count = mapping.width(count)
        return count


def absorbed(user: Node, found: Reading, maps: Maps, weights: WeightValues) -> Read | Refusal:
    """What the weight of a reader takes, and its bias; or why they cannot."""
    shifts = not all(m.is_linear for m in maps)
    weight, bias = found.weight.node, bind(user).get(found.bias) if shifts else None
    if weight not in weights:
        message = f"the weight of {described(user)} depends on data"
        return weights.varies(weight) or Refusal("nonlinear_reader", message, user.name)
    if found.no_shift is not None and shifts:
        return found.no_shift
    if isinstance(bias, Node) and bias not in weights:
        message = f"what {described(user)} adds depends on data, so it cannot take the shift"
        return weights.varies(bias) or Refusal("no_bias", message, user.name)
    for node in (n for n in (weight, bias) if isinstance(n, Node)):
        refusal = weights.refusal(node)
        if refusal is not None:
            return refusal
        if not all(isinstance(size, int) for size in shape_of(node) or ()):
            message = f"the size of {described(node)} is not a fixed number"
            return Refusal("weight_shape", message, node.name)
    if not all(m.admitted_by(found.needs) for m in maps):
        message = f"{described(user)} is grouped, and none of its groups sees all channels"
        return Refusal("grouped_weight", message, user.name)
    leaf = Leaf(before_rounding(weight), found.axis, transposed(maps), found.groups)
    return Read(user, found.weight.name, leaf, maps, found.bias, found)


def before_rounding(weight: Node) -> Node:
    """What a weight was made of by rounding it, as autocast does: with the maps it is rounded once."""
    while is_call(weight, *CASTS) and widened_by(weight) < 0 and len(weight.all_input_nodes) == 1:
        (wide,) = weight.all_input_nodes
        if not lies_alike(weight, wide):
            break
        weight = wide
    return weight
