"""Reading calls of ATen operators: arguments by schema name, whatever way they were passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

__all__ = [
    "CASTS",
    "aten",
    "bind",
    "is_call",
    "known_as",
    "mutated_arguments",
    "mutates",
    "node_inputs",
    "readers",
    "set_arguments",
]

aten = torch.ops.aten

#: Operators that change the dtype (or the device) of a value and nothing else.
CASTS = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default,
    aten.type_as.default,
)  # fmt: skip


def is_call(node: object, *targets: OpOverload) -> bool:
    """Whether ``node`` calls one of these operators (any of ATen's when none is named)."""
    if not (isinstance(node, Node) and node.op == "call_function"):
        return False
    return node.target in targets if targets else isinstance(node.target, OpOverload)


def known_as(node: Node) -> object:
    """What tables know an operator by: itself, or its name where another library brought it."""
    target = node.target
    foreign = isinstance(target, OpOverload) and target.namespace not in ("aten", "normfuse")
    return target.name() if foreign else target  # type: ignore[union-attr]


def bind(node: Node) -> dict[str, Any]:
    """Arguments of an operator call by their schema names, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def set_arguments(node: Node, values: Mapping[str, Any]) -> None:
    """Give arguments of an operator call new values, by their schema names.

    An entry of a list is named by its number as well, as in ``tensors.1``.
    """
    assert isinstance(node.target, OpOverload)
    positional = [a for a in node.target._schema.arguments if not a.kwarg_only]
    bound = bind(node)
    values = _with_whole_lists(bound, values)
    bound |= values
    last = max(len(node.args), *(i + 1 for i, a in enumerate(positional) if a.name in values))
    node.args = tuple(bound[a.name] for a in positional[:last])
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in [a.name for a in positional[:last]]}


def _with_whole_lists(bound: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in values.items():
        argument, _, entry = name.partition(".")
        if entry:
            made.setdefault(argument, list(bound[argument]))[int(entry)] = value
        else:
            made[argument] = value
    return made


def mutated_arguments(node: Node) -> list[Node]:
    """The inputs that an operator writes to, by its schema."""
    if not is_call(node):
        return []
    assert isinstance(node.target, OpOverload)
    if not node.target._schema.is_mutable:
        return []
    bound = bind(node)
    written: list[Node] = []
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = bound[argument.name]
            values = value if isinstance(value, (list, tuple)) else [value]
            written.extend(v for v in values if isinstance(v, Node))
    return written


def mutates(node: Node) -> bool:
    """Whether a call writes to one of its inputs."""
    return bool(mutated_arguments(node))


def readers(node: Node) -> list[Node]:
    """Who reads a value; an assertion on its type does not."""
    return [user for user in node.users if not is_call(user, aten._assert_tensor_metadata.default)]


def node_inputs(node: Node) -> list[Node]:
    """Every node that ``node`` reads, once each."""
    return list(node.all_input_nodes)
