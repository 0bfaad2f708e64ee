"""Which values share memory, and which memory the graph writes to."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.calls import aten, bind, is_call, mutated_arguments
from normfuse.ir.undeclared import KEEPS_STATISTICS, may_return_input
from normfuse.torch_compat import storage_id

__all__ = ["Effects", "aliased_by", "is_effectful", "is_returned"]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


class Effects:
    """Memory written by a graph.

    Memory is known by the storages of fake values, and by what operators declare about views: the
    fake values of a program that was loaded from a file do not share storages.
    """

    def __init__(self, graph: Graph) -> None:
        writers = [(node, _written_by(node)) for node in graph.nodes]
        self._memory: dict[Node, set[int]] = {}
        self._written: set[int] = set()
        self._writers: list[tuple[Node, set[int]]] = []
        if any(written for _, written in writers):
            self._find_memory(graph)
        for node, written in writers:
            for argument in written:
                self._written |= self._memory[argument]
                self._writers.append((node, self._memory[argument]))

    def _find_memory(self, graph: Graph) -> None:
        for node in graph.nodes:
            own = self.storages(node)
            self._memory[node] = own.union(*(self._memory[n] for n in aliased_by(node)))

    @staticmethod
    def storages(node: Node) -> set[int]:
        """Identities of the memory behind a node's value."""
        ids = (storage_id(t) for t in _tensors(node.meta.get("val")))
        return {i for i in ids if i is not None}

    def memory(self, node: Node) -> set[int]:
        """Identities of all memory that a node's value may lie in, where the graph writes to any."""
        known = self._memory.get(node)
        if known is not None:
            return known
        return self.storages(node) if self._written else set()

    def is_written(self, node: Node) -> bool:
        """Whether anything in the graph writes to memory that ``node`` reads or returns."""
        return not self._written.isdisjoint(self.memory(node))

    def writers(self, node: Node) -> list[Node]:
        """The nodes that write to memory that ``node`` reads or returns, in execution order."""
        memory = self.memory(node)
        return [writer for writer, written in self._writers if not written.isdisjoint(memory)]


def is_effectful(node: Node) -> bool:
    """Whether a node matters even where nobody reads its result."""
    return bool(node.is_impure() or _written_by(node) or _changes_state(node) or _returns_nothing(node))


def _returns_nothing(node: Node) -> bool:
    """Whether an operator is called for what it does alone, as assertions are."""
    return isinstance(node.target, OpOverload) and not node.target._schema.returns


def _changes_state(node: Node) -> bool:
    """Whether a call is neither an operator nor arithmetic on sizes: it may switch a mode."""
    if node.op != "call_function" or isinstance(node.target, (OpOverload, HigherOrderOperator)):
        return False
    module = getattr(node.target, "__module__", None) or ""
    return module not in ("_operator", "math") and not getattr(node.target, "__name__", "").startswith("sym_")


def aliased_by(node: Node) -> list[Node]:
    """The inputs that the result of a node may be a view of."""
    if node.op == "call_method" or _changes_state(node):
        return list(node.all_input_nodes)
    target = node.target
    if target is operator.getitem or isinstance(target, HigherOrderOperator):
        return list(node.all_input_nodes)
    if not isinstance(target, OpOverload) or target in KEEPS_STATISTICS:
        return []
    declared = [a.name for a in target._schema.arguments if a.alias_info is not None]
    if not declared and may_return_input(target):
        return list(node.all_input_nodes)
    bound = bind(node) if declared else {}
    return [n for name in declared for n in _nodes(bound[name])]


def is_returned(node: Node) -> bool:
    """Whether anything that the graph returns may lie in the memory of a value."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            if user.op == "output":
                return True
            if user not in seen and current in aliased_by(user):
                seen.add(user)
                stack.append(user)
    return False


def _nodes(value: Any) -> list[Node]:
    return [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Node)]


@cache
def _only_reads(target: OpOverload) -> bool:
    """Whether an operator writes to nothing, whatever its arguments."""
    return target not in KEEPS_STATISTICS and not target._schema.is_mutable


def _written_by(node: Node) -> list[Node]:
    """The inputs whose memory a node may write to."""
    if isinstance(node.target, OpOverload) and _only_reads(node.target):
        return []
    if is_call(node, *KEEPS_STATISTICS):
        bound = bind(node)
        updates = bound[KEEPS_STATISTICS[node.target]]  # type: ignore[index]
        return _nodes([bound["running_mean"], bound["running_var"]]) if updates else []
    if is_call(node, aten.detach_.default):
        return []  # changes what autograd knows, not what the memory holds
    if isinstance(node.target, HigherOrderOperator):
        return [n for n in node.all_input_nodes if n.op != "get_attr"] if _writes_inside(node) else []
    if node.op == "call_method" or _changes_state(node):
        return list(node.all_input_nodes) if _is_in_place(node.target) else []
    return mutated_arguments(node)


def _is_in_place(target: Any) -> bool:
    """Whether a function or method is named like one that writes to its operands."""
    name = str(getattr(target, "__name__", target))
    if name in ("setitem", "__setitem__") or name.startswith("__i"):
        return True
    return name.endswith("_") and not name.endswith("__")


def _writes_inside(node: Node) -> bool:
    """Whether the graphs that an operator runs write to anything; without graphs it might."""
    owner = node.graph.owning_module
    names = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    held = [operator.attrgetter(name)(owner) for name in names if owner is not None]
    graphs = [module.graph for module in held if isinstance(module, GraphModule)]
    return not graphs or any(_written_by(inner) for graph in graphs for inner in graph.nodes)
