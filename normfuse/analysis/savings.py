"""What a norm costs at each call, from its description and the sizes in the graph.

    operations for each entry: mean 1, subtraction 1, square and sum 2, product 1, weight 1, bias 1

A norm with stored statistics subtracts, multiplies and adds what it has of these. Bytes are those of what it
reads and gives; a compiler that fuses the norm with what stands beside it moves fewer. A kernel is counted
for each norm that sums over its input, since a sum has to be complete before anything can read it.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.time_share import bytes_of, count_of
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.report import Cost

__all__ = ["cost_of_centring", "cost_of_norm"]


def cost_of_norm(node: Node) -> Cost:
    """Of a lifted norm as it stands in the graph."""
    region = norm_of(node)
    if region is None:
        return Cost()
    each = _stored(region.spec) if region.spec.is_stored else _with_sums(region.spec)
    traffic = bytes_of(node) + sum(bytes_of(operand) for operand in node.all_input_nodes)
    count = count_of(tensor_of(node.all_input_nodes[0]))
    return Cost(each * count, traffic, 0 if region.spec.is_stored else 1)


def cost_of_centring(value: Node) -> Cost:
    """Of the mean of the last axis, and of its subtraction."""
    return Cost(2 * count_of(tensor_of(value)), 2 * bytes_of(value), 1)


def _with_sums(spec: NormSpec) -> int:
    mean = 2 if spec.centred or spec.kind in ("group_norm", "instance_norm") else 0
    dropped = 1 if spec.basis == "drop_last" else 0
    return mean + dropped + 3 + spec.has_scale + spec.has_shift + (spec.post_factor != 1)


def _stored(spec: NormSpec) -> int:
    factor = spec.has_scale or "variance" in spec.stored
    return factor + spec.has_shift + ("mean" in spec.stored) + 2 * ("skip" in spec.stored)
