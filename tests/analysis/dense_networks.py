"""One call as a program, with one operand from outside and weights for all others, and with maps of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.channel_map import ChannelMap, Trait
from normfuse.analysis.weights import WeightValues
from normfuse.ir import Input, Program, Role
from normfuse.ir.effects import Effects
from tests.analysis.dense import Dense, applied, matrix
from tests.analysis.table_cases import Case
from tests.analysis.test_operator_table import traced

__all__ = ["INNER", "Network"]

#: Between the two maps there are as many channels; grouped products ask for sizes of whole 16 bytes.
BETWEEN, INNER = 8, 12


class Network:
    """A call whose tensors are the weights of a program, but for those that are ``given`` by the caller."""

    def __init__(self, call: Case, given: set[int]) -> None:
        self.call = call
        self.node, tensors = traced(call)
        graph = self.node.graph
        self.tensors: dict[Node, torch.Tensor] = dict(tensors)
        self.operands = list(self.tensors)
        self.given = {self.operands[i] for i in given}
        self._last = self.operands[-1]
        self._graph = graph

    def add(self, value: torch.Tensor) -> Node:
        """One more weight."""
        with self._graph.inserting_after(self._last):
            made = self._graph.placeholder(f"m{len(self.tensors)}")
        made.meta["val"], self._last, self.tensors[made] = value, made, value
        return made

    def maps(self, channels: int, needs: Trait, shifts: bool, reads: bool) -> tuple[ChannelMap, ...]:
        """Two maps, the innermost first: to so many channels if the call ``reads`` them, else from them."""
        dtype = next(t.dtype for t in self.tensors.values() if t.is_floating_point())
        if needs is Trait.DIAGONAL:
            scale, shift = (self.add(torch.linspace(1, 1 + i, channels, dtype=dtype)) for i in (1, 2))
            return (Standardise(0.0, scale, shift if shifts else None),)
        sizes = [INNER, BETWEEN, channels] if reads else [channels, BETWEEN, INNER]
        matrices = [self.add(matrix(out, inner).to(dtype)) for inner, out in pairwise(sizes)]
        shift = self.add(torch.linspace(-1, 2, sizes[-1], dtype=dtype)) if shifts else None
        return Dense(matrices[0]), Dense(matrices[1], shift)

    def mapped(self, value: torch.Tensor, maps: tuple[ChannelMap, ...], axis: int) -> torch.Tensor:
        for one in maps:
            if isinstance(one, Dense):
                shift = None if one.shift is None else self.tensors[one.shift]
                value = applied(value, self.tensors[one.matrix], axis, shift)
            elif isinstance(one, Standardise) and one.scale is not None:
                shift = None if one.shift is None else self.tensors[one.shift]
                value = applied(value, torch.diag(self.tensors[one.scale]), axis, shift)
        return value.contiguous()

    def weights(self) -> WeightValues:
        """The program, ended by the call's result."""
        output = self._graph.output(self.node)
        output.meta["val"] = self.node.meta["val"]
        inputs = [
            Input(n, Role.USER if n in self.given else Role.PARAMETER, n.name, t)
            for n, t in self.tensors.items()
        ]
        program = Program(GraphModule({}, self._graph), inputs, copies_tables=True)
        return WeightValues(program, Effects(self._graph))

    def original(self, changed: dict[Node, torch.Tensor]) -> Any:
        """What the operator itself makes of other operands."""
        places = {id(self.tensors[node]): value for node, value in changed.items()}
        call = self.call
        given = tree_map_only(torch.Tensor, lambda t: places.get(id(t), t), (call.args, call.kwargs))
        made = call.target(*given[0], **given[1])
        return made if call.part is None else made[call.part]

    def run(self, changed: dict[Node, torch.Tensor]) -> Any:
        """The result of the graph as it is now."""
        self._graph.lint()
        values = {n: changed.get(n, t) for n, t in self.tensors.items()}
        return GraphModule({}, self._graph)(*(values[n] for n in self._graph.nodes if n.op == "placeholder"))
