"""What a program takes, leaf by leaf, and how values for the leaves become its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, SymIntArgument, TensorArgument
from torch.fx import Node
from torch.utils import _pytree as pytree

from normfuse.verify.index_bounds import index_bound

__all__ = ["Leaf", "arguments", "leaves_of"]


@dataclass(frozen=True)
class Leaf:
    """One flat input of a program.

    ``shape`` holds numbers and symbolic sizes and is None for an input that is no tensor; ``example`` is the
    stored value, if the program came with one; ``bound`` is the number of rows of the table that an integer
    tensor indexes.
    """

    name: str
    shape: tuple[Any, ...] | None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    example: Any = None
    bound: int | None = None

    @property
    def is_floating(self) -> bool:
        return self.dtype is not None and self.dtype.is_floating_point


def leaves_of(exported: ExportedProgram) -> list[Leaf]:
    """The inputs of the caller, in the order in which :func:`arguments` takes their values."""
    nodes = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
    specs = [s for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    stored = exported.example_inputs
    examples = [None] * len(specs) if stored is None else pytree.tree_leaves(_tuple_and_dict(stored))
    return [_leaf(spec.arg, nodes, example) for spec, example in zip(specs, examples, strict=True)]


def arguments(exported: ExportedProgram, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments with these leaves."""
    args, kwargs = pytree.tree_unflatten(values, exported.call_spec.in_spec)
    return tuple(args), dict(kwargs)


def _tuple_and_dict(stored: tuple[Any, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = stored
    return tuple(args), dict(kwargs)


def _leaf(argument: Any, nodes: dict[str, Node], example: Any) -> Leaf:
    if isinstance(argument, TensorArgument):
        node = nodes[argument.name]
        value = node.meta["val"]
        indexes = value.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        bound = index_bound(node) if indexes else None
        return Leaf(argument.name, tuple(value.shape), value.dtype, value.device, example, bound)
    if isinstance(argument, SymIntArgument):
        return Leaf(argument.name, None, example=example)
    fixed = getattr(argument, "value", None)
    return Leaf(argument.name, None, example=fixed if example is None else example)
