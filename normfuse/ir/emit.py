"""Putting operators into a graph together with their fake values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from normfuse.ir.calls import aten
from normfuse.ir.sizes import is_row_major, tensor_of
from normfuse.torch_compat import autocast_off, fakes_called

__all__ = ["as_row_major", "call", "cast", "fake_value"]


def fake_value(target: OpOverload, args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """What an operator returns for the fake values of its arguments: graphs run with autocast off.

    Values that were recorded under ``torch.inference_mode`` are none that autograd could save.
    """
    given, named = tree_map_only(Node, lambda n: n.meta["val"], (args, dict(kwargs or {})))
    records = torch.is_grad_enabled() and not any(map(_is_inference, tree_leaves((given, named))))
    with autocast_off(), fakes_called(), torch.set_grad_enabled(records):
        return target(*given, **named)


def _is_inference(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_inference()


def call(graph: Graph, target: OpOverload, *args: Any, **kwargs: Any) -> Node:
    """Insert an operator at the graph's insertion point."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = fake_value(target, args, kwargs)
    return node


def cast(graph: Graph, value: Node, dtype: torch.dtype) -> Node:
    """``value`` in this dtype; no operator where it has it already."""
    fake = tensor_of(value)
    if fake is not None and fake.dtype == dtype:
        return value
    return call(graph, aten.to.dtype, value, dtype)


def as_row_major(graph: Graph, value: Node, like: torch.Tensor | None) -> Node:
    """``value`` row after row in memory where ``like`` lies so; no operator where it does already."""
    fake = tensor_of(value)
    if fake is None or like is None or is_row_major(fake) or not is_row_major(like):
        return value
    return call(graph, aten.contiguous.default, value)
