"""A norm with what a compiler writes into the same kernels, cut out of its graph to be measured by itself.

That is the sum before it, what is computed element by element for that alone, the products that read the
norm, and the element-wise operators and views behind all of these.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from normfuse.ir.calls import CASTS, aten, is_call, mutates
from normfuse.ir.effects import aliased_by
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import tensor_of
from normfuse.lowering.readers import products_behind
from normfuse.torch_compat import FakeTensorMode, graph_module, size_hint

__all__ = ["Excerpt", "excerpt"]


@dataclass(frozen=True)
class Excerpt:
    """A graph of its own, the norm in it, and fake tensors that lie as its inputs do."""

    module: GraphModule
    norm: Node
    inputs: list[torch.Tensor]

    @property
    def key(self) -> str:
        """The norm in words and a digest of the graph: equal for equal graphs, whatever nodes are called."""
        numbers: dict[Node, str] = {}
        lines = []
        for node in self.module.graph.nodes:
            numbers[node] = f"%{len(numbers)}"
            region = norm_of(node)
            given = map_arg((node.args, dict(node.kwargs)), lambda n: numbers[n])
            lines.append(f"{region.spec if region else node.target} {given} {_layout(tensor_of(node))}")
        source = self.norm.args[0]
        return f"{_layout(tensor_of(source))}, {sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def _layout(value: torch.Tensor | None) -> str:
    return "" if value is None else f"{value.dtype} {tuple(value.shape)} by {value.stride()}"


def excerpt(norm: Node) -> Excerpt:
    """The neighbourhood of a norm, with open sizes as they were in the example that was traced."""
    owner = norm.graph.owning_module
    inside, graph, made = _inside(norm), Graph(), dict[Node, Any]()
    ordered = [node for node in norm.graph.nodes if node in inside]
    operands = dict.fromkeys(n for node in ordered for n in node.all_input_nodes if n not in inside)
    with FakeTensorMode() as mode:
        inputs: list[torch.Tensor] = []
        for node in operands:
            value = tensor_of(node)
            if value is None:
                made[node] = size_hint(node.meta["val"])
                continue
            made[node] = graph.placeholder(f"input_{len(inputs)}")
            inputs.append(_alike(value))
        for node in ordered:
            made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(tuple(made[n] for n in ordered if not inside.issuperset(n.users)))
        module = graph_module(owner, graph)
        FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    return Excerpt(module, made[norm], inputs)


def _alike(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(
        _plain(value.shape), _plain(value.stride()), dtype=value.dtype, device=value.device
    )


def _plain(sizes: Sequence[Any]) -> list[int]:
    return [size_hint(size) for size in sizes]


def _inside(norm: Node) -> set[Node]:
    products = {one.node for one in products_behind(norm)[0]}
    inside, reached = {norm}, [norm]
    before = [n for n in norm.all_input_nodes[:1] if is_call(n, aten.add.Tensor)]
    while before:
        node = before.pop()
        inside.add(node)
        before += [n for n in node.all_input_nodes if _is_computed_along(n) and len(n.users) == 1]
    while reached:
        grown = [user for user in reached.pop().users if user in products or _is_written_along(user)]
        reached += [user for user in grown if user not in inside]
        inside.update(grown)
    return inside


def _is_written_along(node: Node) -> bool:
    """Whether a compiler computes a value in the kernel of what it is made of, or not at all."""
    return node.target is operator.getitem or _is_computed_along(node)


def _is_computed_along(node: Node) -> bool:
    """The same of a value that is made of tensors: one of several results is where an excerpt begins."""
    if node.op != "call_function" or mutates(node):
        return False
    if is_call(node, *CASTS):
        return True
    is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return isinstance(node.target, OpOverload) and (is_pointwise or bool(aliased_by(node)))
