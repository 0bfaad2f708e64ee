"""What is known about a value on its way to becoming a norm.

A forward walk over the graph attaches to each node at most one :class:`Fact`: which value ``x``
it was made from and how far along the formula it is. Every operator contributes one small
transfer function, so spellings add up: ``x * x``, ``x.pow(2)`` and ``square(x)`` all yield the
stage SQUARE, and whatever comes after needs to know nothing about them.

    SOURCE -> (MEAN -> SOURCE, centred) -> SQUARE -> STATISTIC -> NORMED
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Graph, Node

from normfuse.ir.changed import changed
from normfuse.ir.sizes import tensor_of

__all__ = ["Fact", "Facts", "Stage", "transfer"]


class Stage(Enum):
    """How far along the formula of a norm a value is."""

    SOURCE = auto()
    SCALED = auto()
    MEAN = auto()
    SQUARE = auto()
    STATISTIC = auto()
    UNCENTRED = auto()
    OFFSET = auto()
    NORMED = auto()
    FACTOR = auto()
    MASKED = auto()


@dataclass(frozen=True)
class Fact:
    """``node`` is ``stage`` of ``source``, with the mean over ``dims`` removed when ``centred``.

    A STATISTIC is a power of the sum of squares ``S`` over ``dims``, with eps where ``eps_mode`` says:

        factor * (S / divisor + eps) ** exponent
        factor * (sqrt(S / divisor) + eps) ** (2 exponent)          eps_mode "outside"
        factor * max(sqrt(S / divisor), eps) ** (2 exponent)        eps_mode "clamp"

    In the ``basis`` "drop_last" S is ``sum(x**2) + sum(x)**2``, over one element more than the source has.
    A MEAN is ``factor * sum / divisor``. NORMED is the source times such a statistic; SCALED is the
    source times the weight ``scale``, FACTOR a linear image of the source times the statistic ``root``,
    so that the norm is the factor alone, and MASKED the source or square ``root`` where a mask allows it.

    Where the mean is removed last, UNCENTRED is the source and OFFSET ``sign`` times the mean, each times the
    statistic and ``scale``, plus ``shift``: their difference is NORMED.

    Attributes:
        divisor: None for the number of elements.
        compute_dtype: dtype of the statistics; a fact does not survive a change of it.
        statistics_dtype: dtype of the sums where one operator makes them in more precision.
        factor_dtype: dtype to which a finished statistic was rounded.
        missing: the dims of a statistic that its shape does not have.
        stored: what the source was made of, where it is that and behind it minus its sum.
        flaw: why a norm made of this is recorded but not lifted.
    """

    stage: Stage
    source: Node
    centred: bool = False
    dims: tuple[int, ...] = ()
    eps: float | Node = 0.0
    eps_mode: str = "inside"
    divisor: float | None = None
    exponent: Fraction = Fraction(1)
    factor: float = 1.0
    compute_dtype: torch.dtype | None = None
    statistics_dtype: torch.dtype | None = None
    factor_dtype: torch.dtype | None = None
    missing: tuple[int, ...] = ()
    scale: Node | None = None
    shift: Node | None = None
    sign: int = 1
    root: Node | None = None
    flaw: str = ""
    basis: str = ""
    stored: Node | None = None

    def reduced(self, stage: Stage, dims: tuple[int, ...], **changes: Any) -> Fact | None:
        """A statistic over ``dims``; a centred source has statistics over its own dims only."""
        if self.centred and dims != self.dims:
            return None
        return changed(self, stage=stage, dims=dims, **changes)

    @property
    def subject(self) -> tuple[Node, bool]:
        """What is being normalized: facts about different subjects never combine."""
        return self.source, self.centred


Transfer = Callable[[Node, "Facts"], Fact | None]
_TRANSFERS: dict[object, Transfer] = {}


def transfer(*targets: object) -> Callable[[Transfer], Transfer]:
    """Register what some operators make of the facts about their inputs.

    Raises:
        ValueError: for an operator that has a transfer function already.
    """

    def register(function: Transfer) -> Transfer:
        taken = [t for t in targets if t in _TRANSFERS]
        if taken:
            raise ValueError(f"{taken[0]} has a transfer function already: {_TRANSFERS[taken[0]].__name__}")
        _TRANSFERS.update(dict.fromkeys(targets, function))
        return function

    return register


class Facts:
    """The facts of one graph, found in one forward walk (linear in its size)."""

    def __init__(self, graph: Graph) -> None:
        self._known: dict[Node, Fact] = {}
        self._sources: dict[Node, Fact] = {}
        for node in graph.nodes:
            rule = _TRANSFERS.get(node.target) if node.op == "call_function" else None
            fact = rule(node, self) if rule is not None else None
            if fact is not None:
                self._known[node] = fact

    def at(self, node: object, *stages: Stage) -> Fact | None:
        """The fact about ``node`` at one of these stages.

        Any tensor of numbers is the SOURCE of itself, whatever else it may be: the output of one
        norm can be the input of the next.
        """
        if not isinstance(node, Node):
            return None
        fact = self._known.get(node)
        if fact is not None and fact.stage in stages:
            return fact
        return self._source(node) if Stage.SOURCE in stages else None

    def _source(self, node: Node) -> Fact | None:
        value = tensor_of(node)
        if node not in self._sources and value is not None and value.dtype != torch.bool:
            self._sources[node] = Fact(Stage.SOURCE, node, compute_dtype=value.dtype, flaw=_flaw(value.dtype))
        return self._sources.get(node)

    def ending(self, *stages: Stage) -> list[tuple[Node, Fact]]:
        """Every value at one of these stages, in execution order."""
        return [(n, f) for n, f in self._known.items() if f.stage in stages]


def _flaw(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return ""
    return "complex_input" if dtype.is_complex else "integer_input"
