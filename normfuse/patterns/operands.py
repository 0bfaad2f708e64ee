"""Which operands belong to the model, and along which dimensions they vary."""

from __future__ import annotations

from typing import TypeGuard

from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, is_call
from normfuse.ir.sizes import same, shape_of, tensor_of

__all__ = ["is_stored", "spans", "varying_dims"]

_SHAPED = (
    *CASTS, aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.alias.default,
    aten.expand.default, aten.detach.default, aten.flatten.using_ints,
)  # fmt: skip
_WITH_NUMBER = (aten.add.Tensor, aten.add.Scalar, aten.mul.Tensor, aten.mul.Scalar)
_DEEPEST = 8


def is_stored(value: object) -> TypeGuard[Node]:
    """Whether a value is an input of the graph, at most cast, reshaped, or joined with a number."""
    for _ in range(_DEEPEST):
        if not isinstance(value, Node):
            return False
        if value.op in ("placeholder", "get_attr"):
            held = tensor_of(value)
            return held is not None and held.is_floating_point()
        if is_call(value, *_SHAPED):
            value = value.args[0]
        elif is_call(value, *_WITH_NUMBER) and len(value.all_input_nodes) == 1:
            value = value.all_input_nodes[0]
        else:
            return False
    return False


def varying_dims(operand: object, result: Node) -> tuple[int, ...] | None:
    """The dimensions of ``result`` along which a broadcast operand varies, counted from the end.

    None where it would make the result larger.
    """
    shape, full = shape_of(operand), shape_of(result)
    if shape is None or full is None or len(shape) > len(full):
        return None
    varying = [d for d in range(-len(shape), 0) if not same(shape[d], 1)]
    return tuple(varying) if all(same(shape[d], full[d]) for d in varying) else None


def spans(operand: object, result: Node, dims: tuple[int, ...]) -> bool:
    """Whether an operand has one value for each position along ``dims`` and varies along no other."""
    shape, full = shape_of(operand), shape_of(result)
    if not shape or full is None or not -min(dims) <= len(shape) <= len(full):
        return False
    return all(same(shape[d], full[d] if d in dims else 1) for d in range(-len(shape), 0))
