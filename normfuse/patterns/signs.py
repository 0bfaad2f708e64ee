"""Signs in front of values."""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.calls import aten, is_call

__all__ = ["signed"]


def signed(value: object) -> tuple[object, int]:
    """A value without the minus in front of it, and its sign."""
    sign = 1
    while isinstance(value, Node) and _negates(value):
        value, sign = value.args[0], -sign
    return value, sign


def _negates(node: Node) -> bool:
    times = is_call(node, aten.mul.Tensor, aten.mul.Scalar) and bool(node.args[1] == -1)
    return times or is_call(node, aten.neg.default)
