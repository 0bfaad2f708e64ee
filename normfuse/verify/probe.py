"""A program at one stage, as a graph that also returns the value of every norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from normfuse.ir.effects import Effects
from normfuse.ir.program import Program
from normfuse.lowering.inline import inline_all
from normfuse.verify.isolation import preserved_rng

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """``graph`` returns the program's ``outputs`` tensors, then the value of each probed node, flat.

    ``written`` says which inputs it may write to.
    """

    graph: GraphModule
    outputs: int
    written: tuple[bool, ...]

    @classmethod
    def of(cls, program: Program, nodes: Sequence[Node]) -> Probe:
        """A copy of the program as it is now; nothing of it is executed."""
        copy = program.copied()
        twins = dict(zip(program.gm.graph.nodes, copy.gm.graph.nodes, strict=True))
        end = copy.gm.graph.output_node()
        returned = [v for v in pytree.tree_leaves(end.args[0]) if _is_tensor(v)]
        end.args = ((*returned, *(twins[n] for n in nodes)),)
        inline_all(copy.gm)
        effects = Effects(copy.gm.graph)
        inputs = copy.gm.graph.find_nodes(op="placeholder")
        return cls(copy.gm, len(returned), tuple(effects.is_written(n) for n in inputs))

    def run(self, inputs: Sequence[Any]) -> list[Tensor]:
        """All values; the inputs and the random state are as before afterwards."""
        pairs = zip(inputs, self.written, strict=True)
        given = [i.detach().clone() if written and isinstance(i, Tensor) else i for i, written in pairs]
        with preserved_rng(), torch.no_grad():
            return [value.clone() for value in self.graph.forward(*given)]  # calling it prints errors


def _is_tensor(value: object) -> bool:
    return isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)
