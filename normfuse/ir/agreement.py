"""Whether the value recorded for a node is what its operator gives for the recorded values of its operands.

Every analysis reads dtypes, sizes and strides from ``meta["val"]``, so a rewrite that forgets to change one
misleads all that follow. Operators run on fake values again; nothing is guarded, and sizes count as different
only where they provably are. What cannot be asked twice is not asked: operators that draw random numbers,
write to memory, or make sizes from data.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from normfuse.ir.region import NormRegion, norm_of
from normfuse.torch_compat import asking, statically_known_true

__all__ = ["Agreement"]

_ONCE = (
    torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)  # fmt: skip
_Values = Mapping[Node, Any]


class Agreement:
    """Remembers what was asked: a node is asked again when it, its value or an operand's value changed."""

    def __init__(self) -> None:
        self._asked: dict[Node, tuple[Any, ...]] = {}

    def disagreement(self, node: Node) -> str:
        """What is wrong about a node's value; empty where nothing is, or nothing can be said."""
        operands = node.all_input_nodes
        state = (node.target, norm_of(node), node.args, node.kwargs, _value(node), *map(_value, operands))
        if self._is_known(node, state):
            return ""
        self._asked[node] = state
        if isinstance(node.target, OpOverload) and node.target._schema.returns and "val" not in node.meta:
            return "no value is recorded"
        values = {operand: operand.meta.get("val") for operand in operands}
        if not _can_be_asked(node) or not all(map(_is_plain, tree_leaves((node.meta.get("val"), values)))):
            return ""
        return _compared(node, values)

    def _is_known(self, node: Node, state: tuple[Any, ...]) -> bool:
        before = self._asked.get(node, ())
        return len(before) == len(state) and all(a is b for a, b in zip(before, state, strict=True))


def _value(node: Node) -> Any:
    return node.meta.get("val")


def _can_be_asked(node: Node) -> bool:
    region = norm_of(node)
    if region is not None:
        return all(map(_can_be_asked, (n for n in region.body.nodes if n.op == "call_function")))
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    changes_sizes = any(torch.Tag.inplace_view in getattr(u.target, "tags", ()) for u in _readers(node))
    return not (changes_sizes or set(_ONCE).intersection(node.target.tags)) and bool(node.all_input_nodes)


def _readers(node: Node) -> Iterator[Node]:
    """All that reads an operand, which may have changed the sizes that the operand had."""
    for operand in node.all_input_nodes:
        yield from operand.users


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, or a tensor that lies in memory by strides and is no wrapper."""
    if not isinstance(value, torch.Tensor):
        return True
    kinds = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return value.layout is torch.strided and (type(value) in kinds or type(value).__name__ == "FakeTensor")


def _compared(node: Node, values: _Values) -> str:
    recorded = node.meta["val"]
    try:
        with asking(tree_leaves(list(values.values()))):
            made = _made(node, values)
    except Exception as error:
        is_open = any(_is_open(leaf) for leaf in tree_leaves([recorded, *values.values()]))
        return "" if is_open else f"does not take its operands: {error}"
    before, after = tree_leaves(recorded), tree_leaves(made)
    if len(before) != len(after):
        return f"{len(before)} values are recorded and {len(after)} made"
    found = (_difference(*pair) for pair in zip(before, after, strict=True))
    return next((one for one in found if one), "")


def _made(node: Node, values: _Values) -> Any:
    region = norm_of(node)
    if region is not None:
        return _made_by_body(region, [values[a] for a in node.args if isinstance(a, Node)])
    assert callable(node.target)
    args, kwargs = tree_map_only(Node, values.__getitem__, (node.args, node.kwargs))
    return node.target(*args, **kwargs)


def _made_by_body(region: NormRegion, given: list[Any]) -> Any:
    inputs = [n for n in region.body.nodes if n.op == "placeholder"]
    values = dict(zip(inputs, given, strict=True))
    for node in region.body.nodes:
        if node.op == "call_function":
            values[node] = _made(node, values)
    return values[region.body.output_node().args[0]]


def _is_open(value: Any) -> bool:
    """Whether a size is a symbol."""
    sizes = (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,)
    return any(isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) for size in sizes)


def _difference(recorded: Any, made: Any) -> str:
    """What of two values differs, in the words of a person."""
    if not isinstance(recorded, torch.Tensor) or not isinstance(made, torch.Tensor):
        return "" if isinstance(recorded, torch.Tensor) is isinstance(made, torch.Tensor) else "no tensor"
    for name, before, after in (
        ("dtype", recorded.dtype, made.dtype),
        ("device", recorded.device, made.device),
        ("number of axes", recorded.dim(), made.dim()),
    ):
        if before != after:
            return f"its {name} is recorded as {before} and is {after}"
    if any(map(_differ, recorded.shape, made.shape)):
        return f"its shape is recorded as {_sizes(recorded.shape)} and is {_sizes(made.shape)}"
    steps = zip(recorded.shape, recorded.stride(), made.stride(), strict=True)
    if 0 not in recorded.shape and any(_differ(s, 1) and _differ(a, b) for s, a, b in steps):
        return f"its strides are recorded as {recorded.stride()} and are {made.stride()}"
    return ""


def _differ(a: Any, b: Any) -> bool:
    return a is not b and bool(statically_known_true(a != b))


def _sizes(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes)
