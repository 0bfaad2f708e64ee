"""What a call of an ATen operator says, by argument name."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch.fx import Node
from torch.fx.node import Argument

__all__ = ["bind", "is_operator", "known_dtype", "operator_name", "replace_argument"]


def is_operator(target: object) -> TypeGuard[torch._ops.OpOverload]:
    """Whether an FX target is an operator with a schema (ATen, prims or custom)."""
    return isinstance(target, torch._ops.OpOverload)


def operator_name(node: Node) -> str:
    """``aten::add`` for a call of ``aten.add.Tensor``; the plain target for anything without a schema."""
    return str(node.target._schema.name) if is_operator(node.target) else str(node.target)


def bind(node: Node) -> dict[str, object]:
    """The arguments of an operator call by schema name, defaults included."""
    assert is_operator(node.target)
    arguments = node.target._schema.arguments
    bound: dict[str, object] = {a.name: a.default_value for a in arguments if a.has_default_value()}
    bound.update(zip((a.name for a in arguments), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def replace_argument(node: Node, name: str, value: Argument) -> None:
    """Set the argument called ``name`` of an operator call, wherever the call holds it."""
    assert is_operator(node.target)
    names = [a.name for a in node.target._schema.arguments]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def known_dtype(value: object) -> torch.dtype | None:
    """The dtype that a node's tensor had in the captured program; None when nothing recorded it."""
    recorded = value.meta.get("val") if isinstance(value, Node) else None
    return recorded.dtype if isinstance(recorded, torch.Tensor) else None
