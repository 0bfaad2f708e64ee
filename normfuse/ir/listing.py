"""A graph for people: one line for each node, by the model's own names, equal for equal graphs.

    folded  lin.weight': float32[8, 8] = from lin.weight
            linear: float32[2, 3, 8] = linear(x, lin.weight', lin.bias)  # lin
    norm    rms_norm: float32[2, 3, 8] = rms_norm(linear, scale=ln.weight, eps=1e-05)  # ln

What weights are made of is marked ``fold`` until it is taken out of the graph. Values are named after their
operators and numbered in their order, so nothing depends on the names of nodes or on addresses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.ir.location import module_path
from normfuse.ir.program import Input, Role
from normfuse.ir.region import NormRegion, Operands, norm_of
from normfuse.ir.sizes import is_row_major, same_shape
from normfuse.ir.spec import NormSpec

__all__ = ["input_lines", "listing"]

#: Fields of a description that its operands and the type of its result show.
_SHOWN = ("kind", "source_dtype", "has_scale", "has_shift", "stored")

_ROLES = {Role.USER: "input", Role.PARAMETER: "weight", Role.BUFFER: "buffer", Role.CONSTANT: "const"}


def input_lines(inputs: Iterable[Input]) -> str:
    """What the caller passes."""
    return "\n".join(f"{_ROLES[one.role]:8}{_input_name(one)}: {_type(one.node)}" for one in inputs)


def listing(
    graph: Graph,
    inputs: Iterable[Input],
    folded: Iterable[tuple[Node, Sequence[Node]]] = (),
    mark: str = "",
) -> str:
    """The lines of a graph, without what the caller passes.

    ``folded`` are further inputs, each with the weights that it is made of; ``mark`` is the key of the
    metadata that tells algebra on weights.
    """
    names, sources = _Names(), dict(folded)
    for one in inputs:
        names.give(one.node, _input_name(one))
    lines = []
    for node in graph.nodes:
        if node in sources:
            made = ", ".join(names[source] for source in sources[node])
            own = names.give(node, f"{names[_replaced(node, sources[node])]}'")
            lines.append(f"{'folded':8}{own}: {_type(node)} = from {made}")
        elif node.op == "output":
            lines.append(f"{'':8}return {_value(node.args[0], names)}")
        elif node not in names:
            role = "norm" if norm_of(node) else "fold" if mark and mark in node.meta else ""
            call, place = _call(node, names), module_path(node)
            own = names.give(node, _operator(node))
            lines.append(f"{role:8}{own}: {_type(node)} = {call}{f'  # {place}' if place else ''}")
    return "\n".join(lines)


def _replaced(node: Node, sources: Sequence[Node]) -> Node:
    """The weight that a folded one stands for: it has its shape, and norms come before what reads them."""
    alike = [source for source in sources if same_shape(source, node)]
    return (alike or list(sources))[-1]


def _input_name(one: Input) -> str:
    """As the model's owner calls it; Dynamo calls the argument ``x`` ``l_x_``."""
    if one.role is not Role.USER:
        return one.name
    return one.node.name.removeprefix("l_").strip("_") or one.node.name


class _Names:
    """The name of each value: that of its operator, numbered from the second one on."""

    def __init__(self) -> None:
        self._of: dict[Node, str] = {}
        self._count: Counter[str] = Counter()

    def give(self, node: Node, name: str) -> str:
        self._of[node] = f"{name}_{self._count[name]}" if self._count[name] else name
        self._count[name] += 1
        return self._of[node]

    def __contains__(self, node: Node) -> bool:
        return node in self._of

    def __getitem__(self, node: Node) -> str:
        return self._of.get(node, node.name)


def _operator(node: Node) -> str:
    """The operator of a node without its namespace, or the kind of its norm."""
    region = norm_of(node)
    if region is not None:
        return region.spec.kind
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target).removeprefix("aten.").split(".")[0] if node.op != "get_attr" else "constant"


def _call(node: Node, names: _Names) -> str:
    region = norm_of(node)
    if region is not None:
        return _norm(node, region, names)
    if node.op in ("get_attr", "placeholder"):
        return str(node.target)
    target = _operator(node)
    if isinstance(node.target, torch._ops.OpOverload):
        target = str(node.target).removeprefix("aten.").removesuffix(".default")
    given = [*(_value(a, names) for a in node.args)]
    given += [f"{key}={_value(a, names)}" for key, a in node.kwargs.items()]
    return f"{target}({', '.join(given)})"


def _norm(node: Node, region: NormRegion, names: _Names) -> str:
    operands = region.operands(node)
    roles = [f.name for f in fields(Operands) if f.name not in ("source", "sizes")]
    given = [f"{role}={names[getattr(operands, role)]}" for role in roles if getattr(operands, role)]
    return f"{region.spec.kind}({', '.join([names[operands.source], *given, *_described(region.spec)])})"


def _described(spec: NormSpec) -> list[str]:
    """What a description says that is not usual."""
    dtype = spec.source_dtype
    usual = NormSpec(spec.kind, (-1,), None, dtype, dtype, dtype, dtype)
    held = ((f.name, getattr(spec, f.name)) for f in fields(spec) if f.name not in _SHOWN)
    return [f"{name}={_value(value, None)}" for name, value in held if value != getattr(usual, name)]


def _value(value: Any, names: _Names | None) -> str:
    """An argument as Python writes it, but for nodes and PyTorch's constants."""
    if isinstance(value, Node):
        return value.name if names is None else names[value]
    if isinstance(value, (list, tuple)):
        text = ", ".join(_value(v, names) for v in value)
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' if len(value) == 1 else ''})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    if isinstance(value, (torch.device, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(value)
    return repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _type(node: Node) -> str:
    return _described_type(node.meta.get("val"))


def _described_type(value: Any) -> str:
    """The dtype and the sizes of a value, and how it lies in memory where that is not by rows."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_described_type, value))})"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    lies = "" if is_row_major(value) else f"; strides {_sizes(value.stride())}"
    return f"{str(value.dtype).removeprefix('torch.')}[{_sizes(value.shape)}{lies}]"


def _sizes(sizes: Sequence[Any]) -> str:
    return ", ".join(map(str, sizes))
