"""Whether the value recorded for a node is what its operator gives for the recorded values of its operands.

Every analysis reads dtypes, sizes and strides from ``meta["val"]``, so a rewrite that forgets to change one
misleads all that follow. Operators run again on fake values of their own, with open sizes as they were when
the graph was traced: what is known about open sizes stays as it is. What cannot be asked twice is not asked:
operators that draw random numbers, write to memory, or make sizes from data.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map_only

from normfuse.ir.region import NormRegion, norm_of
from normfuse.torch_compat import SIZES_FROM_DATA, FakeTensor, asking

__all__ = ["Agreement", "state_of"]

_ONCE = frozenset({
    torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
})  # fmt: skip
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer, FakeTensor)


@dataclass(frozen=True)
class _Layout:
    """What is known about a tensor before it has entries.

    ``is_real`` says that it has them: some kernels choose other strides than operators on fake values.
    """

    dtype: torch.dtype
    device: torch.device
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    is_real: bool = field(default=False, compare=False)


#: Stands for a tensor that is a wrapper, or does not lie in memory by strides, and for a size from data.
_UNUSUAL = "unusual"


@dataclass(frozen=True)
class _Call:
    """What a node computes of which values, and the value that is recorded for it."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[Node, ...]
    given: tuple[Any, ...]
    is_recorded: bool
    value: Any

    @classmethod
    def of(cls, node: Node) -> _Call:
        operands = tuple(node.all_input_nodes)
        given = tuple(operand.meta.get("val") for operand in operands)
        recorded = "val" in node.meta
        return cls(node.target, node.args, node.kwargs, operands, given, recorded, node.meta.get("val"))


#: What operators made of values that are alike; layers repeat, and so do tests.
_MADE: dict[Hashable, Any] = {}
_ENOUGH = 10_000


class Agreement:
    """Asks for the nodes of one graph that are not as they were when it was asked before."""

    def __init__(self) -> None:
        self._asked: dict[Node, tuple[Any, ...]] = {}
        self._layouts: dict[int, tuple[Any, Any]] = {}
        self._taken: dict[Node, _Call] = {}

    def take(self, graph: Graph) -> None:
        """Believe what is recorded now, whatever operators say of it."""
        self._asked = {node: state_of(node) for node in graph.nodes}
        self._taken = {node: _Call.of(node) for node in graph.nodes}

    def disagreements(self, graph: Graph) -> Iterator[tuple[Node, str]]:
        """The nodes whose values are wrong, and what is wrong about them."""
        states = {node: state_of(node) for node in graph.nodes}
        changed = [node for node, state in states.items() if not _is_same(state, self._asked.get(node))]
        self._asked = states
        reading = (user for node in changed for user in node.users)
        for node in dict.fromkeys((*changed, *reading)):
            region = norm_of(node)
            found = self._of_call(_Call.of(node)) if region is None else self._of_norm(node, region)
            if found and not self._is_believed(node):
                yield node, found

    def _is_believed(self, node: Node) -> bool:
        """Whether a value is the one that was taken, and was wrong by its operator even then."""
        taken = self._taken.get(node)
        return taken is not None and taken.value is node.meta.get("val") and bool(self._of_call(taken))

    def _of_norm(self, node: Node, region: NormRegion) -> str:
        """A norm is what its body makes of its operands."""
        inputs = [inner for inner in region.body.nodes if inner.op == "placeholder"]
        pairs = [(p, a) for p, a in zip(inputs, node.args, strict=False) if isinstance(a, Node)]
        pairs.append((region.body.output_node().args[0], node))
        for inner, outer in pairs:
            recorded = self._recorded(inner.meta["val"]) if "val" in inner.meta else None
            wanted = self._recorded(outer.meta.get("val"))
            found = _difference(recorded, wanted) if recorded is not None else ""
            if found:
                return f"{inner.name} in its body: {found}"
        inside = ((inner, self._of_call(_Call.of(inner))) for inner in region.body.nodes)
        return next((f"{inner.name} in its body: {found}" for inner, found in inside if found), "")

    def _of_call(self, call: _Call) -> str:
        if isinstance(call.target, OpOverload):
            if call.target._schema.returns and not call.is_recorded:
                return "no value is recorded"
        elif call.target is not operator.getitem:
            return ""
        given, recorded = tuple(map(self._recorded, call.given)), self._recorded(call.value)
        if not _can_be_asked(call) or any(one is _UNUSUAL for one in (*given, recorded)):
            return ""
        if call.target is operator.getitem and None in (given[0], recorded):
            return ""  # what operators with graphs inside return is not recorded
        try:
            made = _made(call, dict(zip(call.operands, given, strict=True)))
        except SIZES_FROM_DATA:
            return ""
        except Exception as error:
            return f"does not take its operands: {error}"
        return _difference(recorded, made)

    def _recorded(self, value: Any) -> Any:
        """What is known about the value of a node; the value is kept, so that its address stays its own."""
        kept, described = self._layouts.get(id(value), (None, None))
        if kept is not value or not isinstance(value, torch.Tensor):
            described = _described(value)
            self._layouts[id(value)] = (value, described)
        return described


def state_of(node: Node) -> tuple[Any, ...]:
    """What a node computes, and what it is said to."""
    return (node.target, node.args, node.kwargs, node.meta.get("val"), norm_of(node))


def _is_same(state: tuple[Any, ...], before: tuple[Any, ...] | None) -> bool:
    return before is not None and all(map(operator.is_, state, before))


def _can_be_asked(call: _Call) -> bool:
    if isinstance(call.target, OpOverload):
        is_once = call.target._schema.is_mutable or not _ONCE.isdisjoint(call.target.tags)
        if is_once or not call.operands:
            return False
    # An operand that somebody gives another shape had another one when this node read it.
    return not any(_resizes(user) for operand in call.operands for user in operand.users)


def _resizes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.inplace_view in node.target.tags


def _made(call: _Call, given: dict[Node, Any]) -> Any:
    """What is known about the result of an operator."""
    alike = _alike(call, given)
    if alike is not None and alike in _MADE:
        return _MADE[alike]
    with asking():
        args, kwargs = tree_map_only(Node, lambda n: _like(given[n]), (call.args, call.kwargs))
        made = _described(call.target(*args, **kwargs))
    if alike is not None:
        if len(_MADE) >= _ENOUGH:
            _MADE.clear()
        _MADE[alike] = made
    return made


def _alike(call: _Call, given: dict[Node, Any]) -> Hashable | None:
    """What two calls have in common that give values which are alike; None where that is hard to say."""
    arguments = _frozen((*call.args, *call.kwargs.items()), given)
    try:
        key = (call.target, torch.get_default_dtype(), arguments)
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(value: Any, given: dict[Node, Any]) -> Hashable:
    """Arguments as tuples, each number beside its type: ``1``, ``1.0`` and ``True`` are equal."""
    if isinstance(value, Node):
        found: Hashable = given[value]
        return found
    if isinstance(value, (list, tuple)):
        return (list, *[_frozen(one, given) for one in value])
    return (type(value), value)


def _described(value: Any) -> Any:
    """A value with each tensor as what is known about it, and open sizes as they were in the trace."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _UNUSUAL if value.node.hint is None else value.node.hint
    if not isinstance(value, torch.Tensor):
        return value
    if type(value) not in _PLAIN or value.layout is not torch.strided or value.is_quantized:
        return _UNUSUAL
    shape, strides = tuple(map(_described, value.shape)), tuple(map(_described, value.stride()))
    if _UNUSUAL in shape or _UNUSUAL in strides:
        return _UNUSUAL
    return _Layout(value.dtype, value.device, shape, strides, not isinstance(value, FakeTensor))


def _like(described: Any) -> Any:
    """A value of which the same is known."""
    if isinstance(described, tuple):
        return [_like(one) for one in described]
    if not isinstance(described, _Layout):
        return described
    return torch.empty_strided(
        described.shape, described.strides, dtype=described.dtype, device=described.device
    )


def _difference(recorded: Any, made: Any) -> str:
    """What of a recorded value differs from the one that was made, in the words of a person."""
    if recorded == made:
        return ""
    if isinstance(recorded, tuple) and isinstance(made, tuple) and len(recorded) == len(made):
        found = (_difference(*pair) for pair in zip(recorded, made, strict=True))
        return next((one for one in found if one), "")
    if not isinstance(recorded, _Layout) or not isinstance(made, _Layout):
        is_one = any(isinstance(one, (_Layout, tuple)) for one in (recorded, made))
        return f"{_said(recorded)} is recorded, and it is {_said(made)}" if is_one else ""
    for name in ("dtype", "device", "shape", "strides"):
        before, after = getattr(recorded, name), getattr(made, name)
        if name == "strides" and recorded.is_real:
            continue
        if not _agree(name, before, after, recorded.shape):
            return f"the {name} {before} is recorded, and it is {after}"
    return ""


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    return "a tensor" if isinstance(value, _Layout) else f"no tensor ({type(value).__name__})"


def _agree(name: str, before: Any, after: Any, shape: tuple[int, ...]) -> bool:
    """Whether two values of a property are the same; how an axis of one entry lies is nothing."""
    if name != "strides" or 0 in shape or len(before) != len(after):
        return bool(before == after) or (name == "strides" and 0 in shape)
    return all(a == b for size, a, b in zip(shape, before, after, strict=True) if size != 1)
