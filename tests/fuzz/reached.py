"""Programs that rules lead to one after the other, each of them made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from normfuse.ir import Program
from normfuse.report import Report

__all__ = ["State", "States", "content"]

Rules = tuple[str, ...]
Rewrite = Callable[..., tuple[Program, Report, list[Tensor]]]


@dataclass(eq=False)
class State:
    """A program, the weights behind its last inputs, and where rules lead from here."""

    program: Program
    folded: list[Tensor]
    behind: dict[Rules, State] = field(default_factory=dict)


class States:
    """All that was reached from one program.

    Rewriting is a function of the graph and of its weights. Two orders of rules that have led to the same
    graph with the same bits in every weight go on from there as one, and most steps are like that: in a small
    network most rules find nothing to do.
    """

    def __init__(self, program: Program, rewrite: Rewrite) -> None:
        self.start = State(program, [])
        self._rewrite = rewrite
        self._known: dict[object, State] = {}

    def after(self, order: tuple[Rules, ...]) -> State:
        """What the rules of ``order`` lead to, those of each entry together and one entry after another."""
        state = self.start
        for rules in order:
            if rules not in state.behind:
                made, _, more = self._rewrite(state.program, only=list(rules))
                found = State(made, [*state.folded, *more])
                state.behind[rules] = self._known.setdefault(content(found), found)
            state = state.behind[rules]
        return state


def content(state: State) -> object:
    """Every node with its operands, whatever it is called, and the bits of every folded weight."""
    program, own = state.program, {id(tensor) for tensor in state.folded}
    inputs = [(i.role, "" if id(i.value) in own else i.name) for i in program.inputs]
    graphs = [_read(part.graph) for part in program.gm.modules() if isinstance(part, GraphModule)]
    return tuple(inputs), tuple(graphs), tuple(map(_bits, state.folded))


def _read(graph: Graph) -> tuple[str, ...]:
    place = {node: f"%{index}" for index, node in enumerate(graph.nodes)}

    def line(node: Node) -> str:
        operands = map_arg((node.args, node.kwargs), place.__getitem__)
        return f"{node.op} {'' if node.op == 'placeholder' else node.target} {operands}"

    return tuple(map(line, graph.nodes))


def _bits(tensor: Tensor) -> object:
    data = tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, tensor.shape, tensor.stride(), data
