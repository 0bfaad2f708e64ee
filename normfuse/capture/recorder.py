"""Watch the dispatcher from above autograd: every ATen operator that a call consists of, whole.

Composite operators such as ``aten.layer_norm`` are seen before they are taken apart, so what is
written down is still differentiable.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map_only

from normfuse.capture.autocasting import autocast_kernel, runs_autocast
from normfuse.capture.symbols import SYMBOLIC, Symbols, symbol_key
from normfuse.errors import UncapturableError
from normfuse.torch_compat import FakeTensor, PreDispatchMode, is_transformed, storage_id

__all__ = ["Recorder"]


class Recorder(PreDispatchMode):
    """While active, appends a node to ``graph`` for each operator that is called.

    Tensors are known by identity: :meth:`begin` says which nodes the operands stand for. Operators
    that ``torch.autocast`` would run in other types are written down with the casts it makes.
    """

    def __init__(self, graph: Graph, symbols: Symbols, constants: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._graph = graph
        self._symbols = symbols
        self._constants = constants
        self._nodes: dict[int, tuple[torch.Tensor, Node]] = {}
        self.meta: Mapping[str, Any] = {}
        self.recorded: list[Node] = []

    def begin(self, operands: Mapping[Node, Any], meta: Mapping[str, Any]) -> None:
        """Forget the last call; ``operands`` are the values that the next one reads."""
        self._nodes = {id(v): (v, n) for n, v in operands.items() if isinstance(v, torch.Tensor)}
        self.meta = meta
        self.recorded = []

    def node_of(self, value: Any) -> Any:
        """The node that made a value; numbers and the like are returned as they are."""
        if isinstance(value, torch.Tensor):
            return self._tensor_node(value)
        return self._symbols.argument(value) if isinstance(value, SYMBOLIC) else value

    def _tensor_node(self, value: torch.Tensor) -> Node:
        known = self._nodes.get(id(value))
        if known is not None:
            return known[1]
        for node in reversed(self.recorded):
            if self.is_handle_of(value, node):
                return node
        if isinstance(value, FakeTensor) or is_transformed(value):
            raise UncapturableError("a value comes from somewhere that is not part of the graph")
        name = f"constant_{len(self._constants)}"
        self._constants[name] = value
        node = self._graph.get_attr(name)
        node.meta = {**self.meta, "val": value}
        self._nodes[id(value)] = (value, node)
        return node

    @staticmethod
    def is_handle_of(value: Any, node: Node) -> bool:
        """Whether ``node`` made this value: what makes new tensors hands out a copy of what was recorded."""
        made = node.meta["val"]
        if made is value or not (isinstance(made, torch.Tensor) and isinstance(value, torch.Tensor)):
            return made is value
        if made.requires_grad or storage_id(made) != storage_id(value):
            return False
        return _layout(made) == _layout(value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kernel = autocast_kernel(func, args, kwargs)
        if kernel is not None:
            with self:
                return kernel(*args, **kwargs)
        if runs_autocast(func, args, kwargs):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        self._append(func, args, kwargs, result)
        return result

    def _append(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        if torch.Tag.inplace_view in func.tags and func is not torch.ops.aten.detach_.default:
            raise UncapturableError(f"{func} changes the shape of a tensor in place")
        written = tree_map_only((torch.Tensor, *SYMBOLIC), self.node_of, (list(args), kwargs))
        node = self._graph.call_function(func, tuple(written[0]), written[1])
        self.recorded.append(node)
        self.bind(node, result)

    def bind(self, node: Node, result: Any) -> None:
        """``node`` is known to return ``result``, a tensor, a number, or a list of them."""
        node.meta = {**self.meta, "val": result}
        if isinstance(result, torch.Tensor):
            self._nodes[id(result)] = (result, node)
        elif isinstance(result, SYMBOLIC):
            self._symbols.learn(result, node)
        elif isinstance(result, (list, tuple)):
            for position, part in enumerate(result):
                if isinstance(part, (torch.Tensor, *SYMBOLIC)):
                    self.bind(self._graph.call_function(operator.getitem, (node, position)), part)


def _layout(value: torch.Tensor) -> tuple[Any, ...]:
    sizes = (*value.shape, "|", *value.stride(), value.storage_offset())
    return (value.dtype, *map(symbol_key, sizes))
