"""What of a graph is computed from constants alone, which the compiler does once and for all.

That is right for a function of the constants whose result only this graph reads. A result that is returned
would be the same memory at every call, to which the caller may write; and an operator that is not PyTorch's
may give another result at each call, or be called for what it does beside it. Ones, zeros and empty values
beside the constants make no difference: a compiler may see that nothing depends on them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from normfuse.capture.inner import bodies
from normfuse.ir.readers import reads_only_type
from normfuse.ir.sizes import same, tensor_of
from normfuse.ir.undeclared import is_builtin

__all__ = ["Settled", "settled"]

Sources = frozenset[Node]


@dataclass
class Settled:
    """The constants behind what is computed from constants alone: of each output, and of foreign operators.

    An output is None where it is computed from something else as well. ``made`` are values that no input and
    no tensor of the graph goes into.
    """

    outputs: list[Sources | None] = field(default_factory=list)
    foreign: set[Node] = field(default_factory=set)
    made: set[Node] = field(default_factory=set)

    @property
    def returned(self) -> set[Node]:
        return {source for output in self.outputs for source in output or ()}

    @property
    def returns_constant(self) -> bool:
        """Whether an output is computed from tensors of the graph itself, of which nothing is an input."""
        return any(output is not None and not output for output in self.outputs)


def settled(module: GraphModule, constants: Iterable[Node]) -> Settled:
    """What is computed from the inputs ``constants`` alone, and from tensors that the graph holds."""
    return _settled(module, {node: frozenset((node,)) for node in constants})


def _settled(module: GraphModule, given: Mapping[Node, Sources]) -> Settled:
    found, known, parts = Settled(), dict(given), dict[Node, list[Sources | None]]()
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(_held(module, node), torch.Tensor):
            known[node] = frozenset()
        elif node.op in ("call_function", "call_method"):
            _follow(module, node, known, parts, found)
    outputs = tree_leaves(module.graph.output_node().args)
    found.outputs = [known.get(one) if isinstance(one, Node) else None for one in outputs]
    return found


def _follow(
    module: GraphModule,
    node: Node,
    known: dict[Node, Sources],
    parts: dict[Node, list[Sources | None]],
    found: Settled,
) -> None:
    """Note what is known of one call."""
    if isinstance(node.target, HigherOrderOperator):
        inside = [_settled(body, _inside(body, operands, known)) for body, operands in bodies(module, node)]
        found.foreign.update(*(one.foreign for one in inside))
        if len(inside) == 1:
            parts[node] = inside[0].outputs
        return
    whole = node.args[0] if node.args else None
    if node.target is operator.getitem and isinstance(whole, Node) and whole in parts:
        part = parts[whole][node.args[1]] if isinstance(node.args[1], int) else None
        if part is not None:
            known[node] = part
        return
    read = [one for one in node.all_input_nodes if not (reads_only_type(node, one) or _is_empty(one))]
    read = [one for one in read if one not in found.made]
    if not read:
        found.made.add(node)
    elif all(one in known for one in read):
        known[node] = frozenset().union(*(known[one] for one in read))
        if _is_foreign(node.target):
            found.foreign |= known[node]


def _is_empty(node: Node) -> bool:
    value = tensor_of(node)
    return value is not None and same(value.numel(), 0)


def _inside(body: GraphModule, operands: list[Node], known: Mapping[Node, Sources]) -> dict[Node, Sources]:
    placeholders = body.graph.find_nodes(op="placeholder")
    pairs = zip(placeholders, operands, strict=False)
    return {inner: known[outer] for inner, outer in pairs if outer in known}


def _is_foreign(target: object) -> bool:
    if isinstance(target, OpOverloadPacket):
        return any(not is_builtin(getattr(target, name)) for name in target.overloads())
    return isinstance(target, OpOverload) and not is_builtin(target)


def _held(module: GraphModule, node: Node) -> object:
    value: object = module
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value
