"""What is known about a value on its way to becoming a norm.

A forward walk over the graph attaches to each node at most one :class:`Fact`: which value ``x``
it was made from and how far along the formula it is. Every operator contributes one small
transfer function, so spellings add up: ``x * x``, ``x.pow(2)`` and ``square(x)`` all yield the
stage SQUARE, and whatever comes after needs to know nothing about them.

    SOURCE -> (MEAN -> SOURCE, centred) -> SQUARE -> MEAN_SQUARE -> PLUS_EPS -> STD | RSTD -> NORMED
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch.fx import Graph, Node

from normfuse.ir.sizes import tensor_of

__all__ = ["Fact", "Facts", "Stage", "transfer"]


class Stage(Enum):
    """How far along the formula of a norm a value is."""

    SOURCE = auto()
    MEAN = auto()
    SQUARE = auto()
    MEAN_SQUARE = auto()
    PLUS_EPS = auto()
    STD = auto()
    RSTD = auto()
    NORMED = auto()


@dataclass(frozen=True)
class Fact:
    """``node`` is ``stage`` of ``source``, with the mean over ``dims`` removed when ``centred``.

    ``compute_dtype`` is the dtype of the statistics; a fact does not survive a change of it.
    """

    stage: Stage
    source: Node
    centred: bool = False
    dims: tuple[int, ...] = ()
    eps: float | Node | None = None
    compute_dtype: torch.dtype | None = None

    @property
    def subject(self) -> tuple[Node, bool]:
        """What is being normalized: facts about different subjects never combine."""
        return self.source, self.centred


Transfer = Callable[[Node, "Facts"], Fact | None]
_TRANSFERS: dict[object, Transfer] = {}


def transfer(*targets: object) -> Callable[[Transfer], Transfer]:
    """Register what some operators make of the facts about their inputs."""

    def register(function: Transfer) -> Transfer:
        _TRANSFERS.update(dict.fromkeys(targets, function))
        return function

    return register


class Facts:
    """The facts of one graph, found in one forward walk (linear in its size)."""

    def __init__(self, graph: Graph) -> None:
        self._known: dict[Node, Fact] = {}
        for node in graph.nodes:
            rule = _TRANSFERS.get(node.target) if node.op == "call_function" else None
            fact = rule(node, self) if rule is not None else None
            if fact is not None:
                self._known[node] = fact

    def at(self, node: object, *stages: Stage) -> Fact | None:
        """The fact about ``node`` at one of these stages.

        Any floating tensor is the SOURCE of itself, whatever else it may be: the output of one
        norm can be the input of the next.
        """
        if not isinstance(node, Node):
            return None
        fact = self._known.get(node)
        if fact is not None and fact.stage in stages:
            return fact
        value = tensor_of(node)
        if Stage.SOURCE not in stages or value is None or not value.is_floating_point():
            return None
        return Fact(Stage.SOURCE, node, compute_dtype=value.dtype)

    def normed(self) -> list[tuple[Node, Fact]]:
        """Every completed core, in execution order."""
        return [(n, f) for n, f in self._known.items() if f.stage is Stage.NORMED]
