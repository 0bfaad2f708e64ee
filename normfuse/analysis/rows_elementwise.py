"""Table rows of element-wise operators: sums carry any linear map, products a scalar per token."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from normfuse.analysis.flow import Carries, Flow, Scales, Shift
from normfuse.analysis.operator_table import block, row
from normfuse.ir.calls import aten, bind
from normfuse.ir.location import described
from normfuse.ir.sizes import same, shape_of, tensor_of

__all__: list[str] = []


def _aligned(operand: object, node: Node, axis: int) -> int | None:
    """The axis of a broadcast operand that lies under ``axis`` of the result, if it has one."""
    shape, out = shape_of(operand), shape_of(node)
    if shape is None or out is None or axis - len(out) + len(shape) < 0:
        return None
    return axis - len(out) + len(shape)


def _spans(operand: object, node: Node, axis: int) -> bool:
    """Whether the operand has the channels, rather than one value for all of them."""
    under, shape, out = _aligned(operand, node, axis), shape_of(operand), shape_of(node)
    return under is not None and shape is not None and out is not None and same(shape[under], out[axis])


def _is_single(operand: object, node: Node, axis: int) -> bool:
    """Whether the operand is one number for all channels of a token."""
    if not isinstance(operand, Node):
        return isinstance(operand, (int, float))
    shape = shape_of(operand)
    if shape is None:
        return tensor_of(operand) is None
    under = _aligned(operand, node, axis)
    return under is None or same(shape[under], 1)


@row(aten.add.Tensor, aten.sub.Tensor)
def _sum(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    terms = [t for t in (bound["self"], bound["other"]) if isinstance(t, Node) or t != 0]
    if not all(_spans(t, node, axis) for t in terms):
        return block(
            node, "constant_added",
            f"{described(node)} adds one value to all channels, which centring would drop",
        )  # fmt: skip
    axes = ((t, a) for t in terms if (a := _aligned(t, node, axis)) is not None)
    return Carries(tuple(axes), shift=Shift.ONCE, adders=_unscaled(node, bound))


def _unscaled(node: Node, bound: dict[str, Any]) -> tuple[Node, ...]:
    """The terms that enter the sum as they are."""
    left, right = bound["self"], bound["other"]
    plain = node.target is aten.add.Tensor and bound["alpha"] == 1
    terms = [left, right] if plain else [left]
    return tuple(t for t in terms if isinstance(t, Node))


@row(aten.mul.Tensor, aten.div.Tensor, multiplies=True)
def _product(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    left, right = bound["self"], bound["other"]
    if left is right:
        return block(node, "nonlinear_writer", f"{described(node)} multiplies a value by itself")
    is_quotient = node.target is aten.div.Tensor
    for value, factor in ((left, right), (right, left)):
        if is_quotient and value is right:
            continue
        under = _aligned(value, node, axis)
        if not isinstance(value, Node) or under is None or not _spans(value, node, axis):
            continue
        if _is_single(factor, node, axis):
            return Carries(((value, under),), factor=_number(factor, is_quotient))
        if isinstance(factor, Node) and not is_quotient and _is_vector(factor, node, axis):
            return Scales(value, under, factor)
    return block(
        node, "channel_gate",
        f"{described(node)} multiplies each channel by a factor of its own that is computed from data",
    )  # fmt: skip


def _number(factor: object, is_quotient: bool) -> float | None:
    if not isinstance(factor, (int, float)) or (is_quotient and factor == 0):
        return None
    return 1.0 / factor if is_quotient else float(factor)


def _is_vector(factor: Node, node: Node, axis: int) -> bool:
    """Whether a factor is one number per channel, the same for every token."""
    shape, under = shape_of(factor), _aligned(factor, node, axis)
    if shape is None or under is None:
        return False
    return all(same(size, 1) for i, size in enumerate(shape) if i != under)


@row(aten.lerp.Tensor, aten.lerp.Scalar)
def _between(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """``a + w (b - a)``: two values by shares that add up to one, the same for all channels of a token."""
    terms = [bound["self"], bound["end"]]
    if not all(_spans(t, node, axis) for t in terms) or not _is_single(bound["weight"], node, axis):
        return block(node, "channel_gate", f"{described(node)} mixes each channel by a share of its own")
    axes = ((t, a) for t in terms if (a := _aligned(t, node, axis)) is not None)
    return Carries(tuple(axes), shift=Shift.EVERYWHERE)


@row(aten.mul.Scalar, aten.div.Scalar, multiplies=True)
def _times_number(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return Carries(((bound["self"], axis),), factor=_number(bound["other"], node.target is aten.div.Scalar))


@row(aten.neg.default, multiplies=True)
def _negated(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return Carries(((bound["self"], axis),), factor=-1.0)


@row(aten.clone.default, aten.alias.default)
@row(aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default)
def _same_axes(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return Carries(((node.args[0], axis),), shift=Shift.EVERYWHERE)  # type: ignore[arg-type]


@row(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default)
@row(aten.type_as.default)
def _cast(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    before, after = tensor_of(node.args[0]), tensor_of(node)
    floats = before is not None and after is not None
    if not (floats and before.is_floating_point() and after.is_floating_point()):  # type: ignore[union-attr]
        message = f"{described(node)} converts to or from a dtype that is not floating"
        return block(node, "nonlinear_writer", message)
    return Carries(((node.args[0], axis),), shift=Shift.EVERYWHERE)  # type: ignore[arg-type]


@row(aten.dropout.default, aten.feature_dropout.default)
def _dropout(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Without training, dropout is the identity; in training each channel has a fate of its own."""
    if bind(node)["train"] is False:
        return Carries(((bound["input"], axis),), shift=Shift.EVERYWHERE)
    return block(
        node, "dropout",
        "element-wise dropout between a weight and the residual sum does not commute with centring",
        "switch the model to evaluation, or set the dropout probability to zero",
    )  # fmt: skip
