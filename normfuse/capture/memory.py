"""Remembering what a call consists of: the layers of a model repeat.

A call that turned out to be one operator is written down without running it when it comes again
with operands of the same types, shapes and strides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_iter

from normfuse.capture.symbols import SYMBOLIC, symbol_key

__all__ = ["Expansion", "Expansions"]


@dataclass(frozen=True)
class _Operand:
    """The place of a node among a call's leaves."""

    position: int


@dataclass(frozen=True)
class Expansion:
    """One operator; operands are named by their place in the call."""

    target: Any
    args: Any
    kwargs: Any

    def arguments(self, operands: list[Node]) -> tuple[Any, Any]:
        """Positional and keyword arguments for other operands."""

        def filled(leaf: Any) -> Any:
            return operands[leaf.position] if isinstance(leaf, _Operand) else leaf

        return map_aggregate(self.args, filled), map_aggregate(self.kwargs, filled)


class Expansions:
    """What calls were found to consist of, by function and kinds of operands."""

    def __init__(self) -> None:
        self._known: dict[Any, Expansion] = {}
        self._keys: dict[Node, Any] = {}

    def key(self, target: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, list[Node]] | None:
        """What two calls must share to be one operator alike, and the nodes they read."""
        if not _is_torchs(target):
            return None
        parts: list[Any] = [target, torch.is_grad_enabled(), len(args), *kwargs]
        operands: list[Node] = []
        for leaf in _leaves((args, kwargs)):
            if isinstance(leaf, Node):
                parts.append((operands.index(leaf) if leaf in operands else -1, self._of(leaf)))
                operands.append(leaf)
            else:
                parts.append(leaf if leaf in _BRACKETS else (type(leaf), repr(leaf)))
        return tuple(parts), operands

    def _of(self, node: Node) -> Any:
        if node not in self._keys:
            self._keys[node] = _kind(node.meta.get("val"))
        return self._keys[node]

    def find(self, key: Any) -> Expansion | None:
        return self._known.get(key)

    def learn(self, key: Any, operands: list[Node], node: Node) -> None:
        """``node`` is all that the call consisted of."""
        if not set(node.all_input_nodes) <= set(operands):
            return

        def named(leaf: Any) -> Any:
            return _Operand(operands.index(leaf)) if isinstance(leaf, Node) else leaf

        self._known[key] = Expansion(
            node.target, map_aggregate(node.args, named), map_aggregate(node.kwargs, named)
        )


_BRACKETS = ("(", ")", "[", "]", "{", "}", ":")


def _leaves(value: Any) -> list[Any]:
    """Leaves and brackets, so that differently nested arguments stay different."""
    if isinstance(value, (list, tuple)):
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
        return [opening, *(leaf for part in value for leaf in _leaves(part)), closing]
    if isinstance(value, dict):
        return ["{", *(leaf for key in value for leaf in (repr(key), *_leaves(value[key]))), "}"]
    if isinstance(value, slice):
        return [":", *_leaves((value.start, value.stop, value.step))]
    return [value]


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        sizes = (*value.shape, "|", *value.stride(), value.storage_offset())
        return type(value), value.dtype, value.device, value.requires_grad, *map(symbol_key, sizes)
    if isinstance(value, SYMBOLIC):
        return type(value), symbol_key(value)
    if isinstance(value, (list, tuple)):
        return tuple(_kind(part) for part in tree_iter(value))
    return type(value)


def _is_torchs(target: Any) -> bool:
    """Whether a function is PyTorch's own, so that it does the same every time."""
    module = getattr(target, "__module__", None) or ""
    return isinstance(target, str) or module.split(".")[0] in ("torch", "_operator", "builtins", "")
