"""Table rows of the operators that mix channels linearly: their weights absorb the map.

M (W x + b) = (M W) x + (M b), and a shift belongs to the bias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import Node

from normfuse.analysis.channel_map import Trait
from normfuse.analysis.flow import Carries, Flow, Shift
from normfuse.analysis.operator_table import block, row
from normfuse.ir.calls import aten
from normfuse.ir.einsum import subscripts
from normfuse.ir.location import described
from normfuse.ir.sizes import rank_of, same, shape_of

__all__: list[str] = []


def _with_bias(node: Node, axis: int, weight: tuple[Node, int], bias: object, adds: bool = True) -> Flow:
    """The weight's axis and the last axis of a bias, where there is one; else a bias can be made."""
    shape, out = shape_of(bias), shape_of(node)
    if not isinstance(bias, Node) or shape is None or out is None:
        return Carries((weight,), shift=Shift.ONCE, bias="bias")
    if not shape or not same(shape[-1], out[axis]):
        return block(node, "constant_added", f"{described(node)} adds one value to all channels")
    adders = (bias,) if adds else ()
    return Carries((weight, (bias, len(shape) - 1)), shift=Shift.ONCE, adders=adders)


def _per_row(node: Node, what: str) -> Flow:
    message = f"the channels of {described(node)} are not the output features of {what}"
    return block(node, "channel_mix", message)


@row(aten.linear.default)
def _linear(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    if axis < rank_of(bound["input"]) - 1:
        return _rows_of_input(node, bound["input"], axis, bound["bias"])
    return _with_bias(node, axis, (bound["weight"], 0), bound["bias"])


def _rows_of_input(node: Node, x: Node, axis: int, bias: object) -> Flow:
    """Token axes of a linear are those of its input; a bias is not mapped, so there must be none."""
    if bias is not None:
        return _per_row(node, "the linear")
    return Carries(((x, axis),))


@row(aten.addmm.default)
def _addmm(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    if axis != 1:
        return _per_row(node, "the linear")
    return _with_bias(node, axis, (bound["mat2"], 1), bound["self"], adds=bound["beta"] == 1)


@row(aten.mm.default, aten.matmul.default, aten.bmm.default)
def _matmul(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    left = bound["self"]
    right: Any = bound.get("other", bound.get("mat2"))
    out, a, b = shape_of(node), shape_of(left), shape_of(right)
    if out is None or a is None or b is None or len(b) < 2 or len(a) < 2:
        return _per_row(node, "the product")
    if axis == len(out) - 1:
        return Carries(((right, len(b) - 1),))
    if axis == len(out) - 2:
        return Carries(((left, len(a) - 2),))
    return _per_row(node, "the product")


@row(aten._grouped_mm.default)
def _grouped(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Rows of one expert after the other, each times that expert's matrix: all experts take the map."""
    experts = bound["mat2"]
    if (axis, rank_of(node), rank_of(experts)) != (1, 2, 3) or bound["bias"] is not None:
        return _per_row(node, "the grouped product")
    return Carries(((experts, 2),))


@row(aten.einsum.default)
def _einsum(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """The output axis belongs to the one operand whose subscripts hold its letter."""
    operands = list(bound["tensors"])
    inputs, output = subscripts(bound["equation"], [rank_of(o) for o in operands])
    letter = output[axis]
    holders = [(o, s.index(letter)) for o, s in zip(operands, inputs, strict=True) if letter in s]
    if len(holders) != 1 or any(s.count(letter) > 1 for s in inputs):
        return _per_row(node, "the einsum")
    return Carries((holders[0],))


@row(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
def _conv(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Output channel ``o`` of a grouped convolution sees only its group's inputs."""
    if not _is_channel_axis(node, bound, axis):
        return _per_row(node, "the convolution")
    found = _with_bias(node, axis, (bound["weight"], 0), bound["bias"])
    if bound["groups"] == 1 or not isinstance(found, Carries):
        return found
    return replace(found, needs=Trait.DIAGONAL)


@row(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _conv_transpose(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """The weight is [in, out / groups, ...]: each run of inputs has outputs of its own."""
    if not _is_channel_axis(node, bound, axis):
        return _per_row(node, "the convolution")
    found = _with_bias(node, axis, (bound["weight"], 1), bound["bias"])
    if bound["groups"] == 1 or not isinstance(found, Carries):
        return found
    return replace(found, needs=Trait.DIAGONAL, groups=bound["groups"])


@row(aten.convolution.default)
def _convolution(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """What core ATen makes of both kinds."""
    return (_conv_transpose if bound["transposed"] else _conv)(node, bound, axis)


def _is_channel_axis(node: Node, bound: dict[str, Any], axis: int) -> bool:
    return axis == rank_of(node) - (rank_of(bound["weight"]) - 1)


@row(aten.embedding.default)
def _embedding(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    if axis != len(shape_of(node) or ()) - 1:
        return _per_row(node, "the embedding")
    return Carries(((bound["weight"], 1),), table=True, shift=Shift.EVERYWHERE)
