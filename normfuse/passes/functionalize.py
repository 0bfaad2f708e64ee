"""In-place updates of fresh intermediate values become ordinary operators.

    y = add_(x, r)   =>   y = add(x, r),   later reads of x become reads of y

Only where nothing could tell the difference: the memory is not an input's, no other view of it is
read afterwards, and the result has the shape, strides and dtype that the memory had. Bitwise
neutral. Everything else stays in place, and norms that read such memory stay as they are.
"""

from __future__ import annotations

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from normfuse.ir.calls import aten, is_call, mutated_arguments
from normfuse.ir.effects import Effects
from normfuse.ir.emit import fake_value
from normfuse.ir.sizes import same, tensor_of

__all__ = ["functionalize"]


_CHANGES_MEMORY = (aten.resize_.default, aten.set_.source_Tensor)
#: In place they have derivatives, and otherwise they have none.
_HAS_NO_DERIVATIVE = (aten.copy.default,)


def functionalize(gm: GraphModule, records_gradients: bool = False) -> int:
    """Replace what can be replaced; returns how many updates that were."""
    kept = _HAS_NO_DERIVATIVE if records_gradients else ()
    updates = [n for n in gm.graph.nodes if _functional(n) not in (None, *kept)]
    return _Functionalizer(gm).run(updates) if updates else 0


def _functional(node: Node) -> OpOverload | None:
    """The operator without the underscore, when the first argument is all that is written."""
    if not is_call(node) or not isinstance(node.target, OpOverload) or node.target in _CHANGES_MEMORY:
        return None
    name = node.target._schema.name.removeprefix("aten::")
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    if random or not name.endswith("_") or mutated_arguments(node) != list(node.args[:1]):
        return None
    found = getattr(getattr(aten, name[:-1], None), node.target._overloadname, None)
    return found if isinstance(found, OpOverload) else None


class _Functionalizer:
    """Knows which nodes share memory, and in what order they run."""

    def __init__(self, gm: GraphModule) -> None:
        self._graph = gm.graph
        self._order = {node: i for i, node in enumerate(gm.graph.nodes)}
        self._effects = Effects(gm.graph)
        self._sharing: dict[int, set[Node]] = {}
        for node in gm.graph.nodes:
            for memory in self._effects.memory(node):
                self._sharing.setdefault(memory, set()).add(node)

    def run(self, updates: list[Node]) -> int:
        return sum(self._replace(node, _functional(node)) for node in updates)

    def _replace(self, node: Node, target: OpOverload | None) -> bool:
        base = node.args[0]
        if target is None or not isinstance(base, Node):
            return False
        memory = self._effects.memory(base)
        sharing = set().union(*(self._sharing[m] for m in memory))
        if not self._is_private(base, node, sharing) or not _keeps_layout(node, base, target):
            return False
        position = self._order[node]
        later = [u for u in base.users if self._order[u] > position]
        for user in later:
            user.replace_input_with(base, node)
        self._make_functional(node, target, memory)
        return True

    def _make_functional(self, node: Node, target: OpOverload, memory: set[int]) -> None:
        """The node keeps its place and its readers; from here on it has memory of its own."""
        node.target = target
        for m in memory:
            self._sharing[m].add(node)

    def _is_private(self, base: Node, update: Node, sharing: set[Node]) -> bool:
        """Whether the memory is the graph's own, and read through the update's result alone from here on."""
        if not sharing or any(n.op != "call_function" for n in sharing):
            return False
        now = self._order[update]
        earlier = [n for n in sharing if self._order[n] < now and n is not base]
        return all(self._order[user] < now for n in earlier for user in n.users)


def _keeps_layout(node: Node, base: Node, target: OpOverload) -> bool:
    """Whether the functional operator makes a tensor like the one that was written to."""
    before, made = tensor_of(base), fake_value(target, node.args, node.kwargs)
    if before is None or not isinstance(made, torch.Tensor):
        return False
    layouts = zip((*made.shape, *made.stride()), (*before.shape, *before.stride()), strict=False)
    return made.dtype == before.dtype and made.dim() == before.dim() and all(same(a, b) for a, b in layouts)
