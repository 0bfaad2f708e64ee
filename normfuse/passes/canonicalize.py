"""Drop operators that hand their input on unchanged, and name dtypes instead of pointing at them.

    to(x, x.dtype) -> x        alias(x) -> x        dropout(x, p, train=False) -> x
    dropout(x, p=0) -> x, which draws no random numbers either
    type_as(x, y) -> to(x, y.dtype)                multiply(x, y) -> mul(x, y)

Bitwise neutral. Nothing is dropped where the graph writes to the memory concerned, nor what the
graph returns, so aliasing and mutation stay what they were.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.effects import Effects
from normfuse.ir.sizes import tensor_of

__all__ = ["canonicalize"]


#: Operators with two names.
_ALIASES: dict[object, Any] = {
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.divide.Tensor: aten.div.Tensor,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.clip.default: aten.clamp.default,
}


def canonicalize(gm: GraphModule) -> int:
    """Remove no-op nodes; returns how many."""
    effects = Effects(gm.graph)
    removed = 0
    for node in list(gm.graph.nodes):
        if node.target in _ALIASES:
            node.target = _ALIASES[node.target]
        if is_call(node, aten.type_as.default, aten.to.other) and not effects.is_written(node):
            _name_the_dtype(node)
        if _hands_on(node) and not effects.is_written(node) and not _is_returned(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            removed += 1
    return removed


def _name_the_dtype(node: Node) -> None:
    """``x.type_as(y)`` reads nothing of ``y`` but its dtype."""
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None or before.device != after.device:
        return
    bound = bind(node)
    if not bound.get("copy") and bound.get("memory_format") is None:
        node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], after.dtype), {}


def _is_returned(node: Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _hands_on(node: Node) -> bool:
    if is_call(node, aten.alias.default) or _detaches_a_constant(node):
        return True
    if is_call(node, aten.dropout.default, aten.feature_dropout.default):
        bound = bind(node)
        return bound["train"] is False or bound["p"] == 0
    return is_call(node, *CASTS) and _keeps_type(node)


def _detaches_a_constant(node: Node) -> bool:
    """``torch.tensor(...)`` inside of a model: it has no gradients to be detached from."""
    return is_call(node, aten.detach_.default) and is_call(node.args[0], aten.lift_fresh_copy.default)


def _keeps_type(node: Node) -> bool:
    bound = bind(node)
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None or bound.get("copy") or bound.get("memory_format") is not None:
        return False
    return before.dtype == after.dtype and before.device == after.device and before.layout == after.layout
