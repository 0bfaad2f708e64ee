"""Which values depend on the model alone, and which weights may have a folded copy."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch._ops import OpOverload
from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.weight_memory import WeightMemory, memory_of
from normfuse.ir.calls import aten, is_call
from normfuse.ir.dtypes import FLOATS
from normfuse.ir.effects import Effects
from normfuse.ir.grad_mode import switches_gradients
from normfuse.ir.location import described
from normfuse.ir.program import Input, Program
from normfuse.ir.readers import ancestors
from normfuse.ir.sizes import tensor_of
from normfuse.ir.undeclared import is_pure, may_differ
from normfuse.report import Refusal

__all__ = ["WeightValues", "divided_refusal"]

_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class WeightValues:
    """The values of a graph that are computed from parameters, buffers and constants only.

    ``divided`` says that some operators of the graph record gradients and others do not.
    """

    def __init__(self, program: Program, effects: Effects) -> None:
        self.program = program
        self._inputs = program.weights
        self._effects = effects
        self._updated = {memory_of(i) for i in self._inputs.values() if i.name in program.updated}
        self.divided = program.grad_enabled and switches_gradients(program.gm.graph)
        self._known: set[Node] = set()
        self._folded: set[Node] = set()
        self._memory = WeightMemory(self._inputs, self._known, self._folded)
        for node in program.gm.graph.nodes:
            if self._is_weight(node):
                self._known.add(node)

    def __contains__(self, node: object) -> bool:
        return node in self._known

    def admit(self, nodes: Iterable[Node]) -> None:
        """Folded weights that were put into the graph: they may be folded again, as a whole."""
        folded = set(nodes)
        self._known |= folded
        self._folded |= folded
        self._memory.forget_places()

    def is_folded(self, node: Node) -> bool:
        return node in self._folded

    def _is_weight(self, node: Node) -> bool:
        if node.op == "placeholder":
            return node in self._inputs
        if node.op == "get_attr":
            return _is_literal(node)
        if node.op != "call_function" or not _is_function(node.target) or self.is_written(node):
            return False
        return all(n in self._known for n in node.all_input_nodes)

    def is_written(self, node: Node) -> bool:
        """Whether the graph writes to memory that ``node`` stands for, at once or for the next call."""
        return self._effects.is_written(node) or (
            bool(self._updated) and memory_of(self._inputs.get(node)) in self._updated
        )

    def label(self, node: Node) -> str:
        """The name that the model's owner gives a weight."""
        found = self._inputs.get(node)
        return described(node) if found is None else found.name

    def refusal(self, node: Node) -> Refusal | None:
        """Why a weight value must not be folded: by the leaves it is computed from."""
        seen, stack = {node}, [node]
        while stack:
            current = stack.pop()
            found = self._leaf_refusal(current) or self._moved(current, node)
            if found is not None:
                return found
            fresh = [n for n in current.all_input_nodes if n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        return None

    def _moved(self, leaf: Node, node: Node) -> Refusal | None:
        """A copy of what is moved at every call would stay where the user does not want it."""
        found = tensor_of(leaf)
        is_scalar = found is not None and not found.dim()
        return None if leaf not in self._inputs or is_scalar else self.refusal_apart(leaf, [node])

    def refusal_apart(self, node: Node, others: Iterable[Node]) -> Refusal | None:
        """Why a weight value is not combined with others: they lie on another device."""
        here = tensor_of(node)
        for other in others:
            there = tensor_of(other)
            if here is not None and there is not None and here.device != there.device:
                return Refusal(
                    "weight_device",
                    f"the weight {self.label(node)} is on {here.device}, "
                    f"but {self.label(other)}, which it is combined with, is on {there.device}",
                    node.name,
                    "move the whole model to one device",
                )
        return None

    def _leaf_refusal(self, node: Node) -> Refusal | None:
        if self.is_written(node):
            return Refusal("weight_mutated", f"the graph itself writes to {described(node)}", node.name)
        found = self._inputs.get(node)
        if found is None:
            return None
        is_folded = not (self.program.grad_enabled and found.trains)
        if found.is_sharded and is_folded:
            return _sharded(node, found)
        return _tensor_refusal(node, found, self.program.values_later)

    def varies(self, node: Node) -> Refusal | None:
        """Why a value that is made of weights alone is none: an operator may make another one each time.

        None where nothing is made of a weight, or where the reason is another one.
        """
        seen, stack, found = {node}, [node], None
        written: Node | None = None
        while stack:
            current = stack.pop()
            if current not in self._known:
                if current.op != "call_function":
                    return None
                if self.is_written(current):
                    written = current
                elif isinstance(current.target, OpOverload) and may_differ(current.target):
                    found = None if "dropout" in current.target.name() else _impure(current)
            fresh = [n for n in current.all_input_nodes if n not in seen]
            seen.update(fresh)
            stack.extend(fresh)
        if found is None and written is not None and any(n in self._inputs for n in seen):
            return self._leaf_refusal(written)
        return found

    def records_gradients(self, node: Node) -> bool:
        """Whether a weight value is computed from anything that trains."""
        return any(found.trains for found in self.stored(node))

    def stored(self, node: Node) -> list[Input]:
        """The inputs that a weight value is computed from."""
        seen = ancestors(node)
        return [found for n, found in self._inputs.items() if n in seen]

    def train(self, maps: Iterable[ChannelMap]) -> bool:
        """Whether gradients flow into what maps are made of."""
        return self.program.grad_enabled and any(self.records_gradients(s) for m in maps for s in m.sources)

    def is_shared(self, node: Node) -> bool:
        """Whether what a weight value is made of is read by more than one operator, under any name."""
        return self._memory.is_shared(node)

    def readers_of(self, node: Node) -> list[Node]:
        """All operators on data that read a weight value, or whatever else is made of the same memory."""
        return self._memory.readers_of(node)


def _impure(node: Node) -> Refusal:
    target = node.target
    name = (
        str(target._schema.name).removeprefix("aten::").replace("::", ".")
        if isinstance(target, OpOverload)
        else str(target)
    )
    return Refusal(
        "impure_operator", f"{name} ({node.name}) makes this weight, and may make another one at each call",
        node.name, "call it once, and keep its result as a parameter or a buffer",
    )  # fmt: skip


def divided_refusal(node: Node) -> Refusal:
    """What is computed under one gradient mode does not move to where another one may hold."""
    message = f"the graph switches gradients on or off around {described(node)}"
    return Refusal("grad_mode", message, node.name)


def _is_literal(node: Node) -> bool:
    """Whether a constant is read by copying alone, as ``torch.tensor([3, 4])`` inside of a model is."""
    return all(is_call(user, aten.lift_fresh.default, aten.lift_fresh_copy.default) for user in node.users)


def _is_function(target: object) -> bool:
    """Whether an operator's result depends on the entries of its operands and nothing else."""
    return is_pure(target) if isinstance(target, OpOverload) else target is operator.getitem


def _sharded(node: Node, found: Input) -> Refusal:
    return Refusal(
        "weight_sharded",
        f"the weight {found.name} is sharded (FSDP) and gathered anew for every call, so a folded copy would "
        "have to be made anew as well",
        node.name,
        "rewrite the model with normfuse.rewrite before it is sharded, or load it whole for inference",
    )


def _tensor_refusal(node: Node, found: Input, values_later: bool) -> Refusal | None:
    value = found.value
    name = found.name or node.name
    if type(value) not in _PLAIN or value.is_quantized or value.layout != torch.strided:
        kind = type(value).__name__ if type(value) not in _PLAIN else "quantized or sparse tensor"
        return Refusal(
            "weight_subclass", f"the weight {name} is a {kind}, not a plain tensor", node.name,
            "convert the model before it is quantized or distributed",
        )  # fmt: skip
    if (value.is_floating_point() and value.dtype not in FLOATS) or value.is_complex():
        return Refusal("weight_dtype", f"the weight {name} has dtype {value.dtype}", node.name)
    if value.device.type == "meta" and not values_later:
        return Refusal(
            "weight_dtype", f"the weight {name} is on the meta device and has no values", node.name
        )
    if value.is_inference():
        return Refusal(
            "weight_untracked",
            f"the weight {name} was created under inference_mode, so changes to it cannot be seen", node.name,
            "create or load the model outside of torch.inference_mode()",
        )  # fmt: skip
    return None
