"""Drop operators that hand their input on unchanged, and give one name to what has several.

    to(x, x.dtype) -> x        alias(x) -> x        dropout(x, p, train=False) -> x
    dropout(x, p=0) -> x, which draws no random numbers either
    to(to(x, wider), x.dtype) -> x                 torch.tensor(0.1) -> full([], 0.1)
    type_as(x, y) -> to(x, y.dtype)                multiply(x, y) -> mul(x, y)
    movedim(x, 1, -1) -> permute(x, ...)           narrow(x, 1, 2, 3) -> slice(x, 1, 2, 5)

Bitwise neutral. Nothing is dropped where the graph writes to the memory concerned, nor what the
graph returns, so aliasing and mutation stay what they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.ir.dtypes import WIDER
from normfuse.ir.effects import Effects, is_returned
from normfuse.ir.grad_mode import switches_gradients
from normfuse.ir.sizes import lies_alike, same, tensor_of
from normfuse.passes.views import name_view

__all__ = ["canonicalize"]


#: Operators with two names.
_ALIASES: dict[object, Any] = {
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.divide.Tensor: aten.div.Tensor,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.clip.default: aten.clamp.default,
    aten.swapaxes.default: aten.transpose.int,
    aten.swapdims.default: aten.transpose.int,
    aten.moveaxis.int: aten.movedim.int,
    aten.moveaxis.intlist: aten.movedim.intlist,
}


def canonicalize(gm: GraphModule) -> int:
    """Remove no-op nodes; returns how many."""
    effects, switches = Effects(gm.graph), switches_gradients(gm.graph)
    removed = 0
    for node in list(gm.graph.nodes):
        if node.target in _ALIASES:
            node.target = _ALIASES[node.target]
        name_view(node)
        _write_out(node, gm, effects)
        if is_call(node, aten.type_as.default, aten.to.other) and not effects.is_written(node):
            _name_the_dtype(node)
        value = None if switches else _brought_back(node)
        if value is not None and not (effects.is_written(node) or effects.is_written(value)):
            _go_without(node, value)
            removed += 1
        elif _hands_on(node) and not effects.is_written(node) and not _is_returned(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            removed += 1
    return removed


def _write_out(node: Node, gm: GraphModule, effects: Effects) -> None:
    """``torch.tensor(1e-4)`` inside of a model, as it is traced: a number, or new memory at each call."""
    if is_call(node, aten.lift_fresh.default):
        node.target = aten.lift_fresh_copy.default
    if not _detaches_a_constant(node):
        return
    lifted = node.all_input_nodes[0]
    constant, fake = lifted.args[0], tensor_of(node)
    held = getattr(gm, str(constant.target), None) if isinstance(constant, Node) else None
    is_number = isinstance(held, torch.Tensor) and held.dim() == 0 and type(held) is torch.Tensor
    alone = set(effects.writers(lifted)) <= {node} and len(lifted.users) == 1
    if fake is None or not is_number or not alone or is_returned(node) or not fake.is_floating_point():
        return
    number = held.item()  # type: ignore[union-attr]
    node.target, node.args = aten.full.default, ([], number)
    node.kwargs = {"dtype": fake.dtype, "device": fake.device}


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


def _brought_back(node: Node) -> Node | None:
    """What a cast gives back, where it undoes one that lost nothing; new memory, which nobody may notice."""
    wide = node.args[0] if is_call(node, *CASTS) else None
    if not (isinstance(wide, Node) and is_call(wide, *CASTS) and _converts(node) and _converts(wide)):
        return None
    value = wide.args[0]
    before, between, after = map(tensor_of, (value, wide, node))
    if not isinstance(value, Node) or before is None or between is None or after is None:
        return None
    loses_nothing = before.dtype == after.dtype and between.dtype in WIDER.get(before.dtype, ())
    stays = before.device == between.device == after.device and _lies_in_the_same_places(value, node)
    return value if loses_nothing and stays and _is_unseen(wide, node) else None


def _lies_in_the_same_places(value: Node, node: Node) -> bool:
    before, after = tensor_of(value), tensor_of(node)
    if before is None or after is None or before.layout != after.layout:
        return False
    begins = same(before.storage_offset(), after.storage_offset())
    return begins and lies_alike(value, node)


def _converts(cast: Node) -> bool:
    """Whether a cast does nothing but that."""
    bound = bind(cast)
    return not bound.get("copy") and bound.get("memory_format") is None


def _is_unseen(wide: Node, node: Node) -> bool:
    """Whether nobody sees the wide value, and no caller the result, which would not be new memory."""
    others = (user for user in wide.users if user is not node)
    return all(is_call(o, aten._assert_tensor_metadata.default) for o in others) and not is_returned(node)


def _go_without(node: Node, value: Node) -> None:
    (wide,) = node.all_input_nodes
    node.replace_all_uses_with(value)
    for unused in (node, *(user for user in wide.users if user is not node), wide):
        node.graph.erase_node(unused)


def _detaches_a_constant(node: Node) -> bool:
    """``torch.tensor(...)`` inside of a model: it has no gradients to be detached from."""
    return is_call(node, aten.detach_.default) and is_call(node.args[0], aten.lift_fresh_copy.default)


def _keeps_type(node: Node) -> bool:
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None or not _converts(node):
        return False
    return before.dtype == after.dtype and before.device == after.device and before.layout == after.layout
