"""Whose a weight is: it takes maps where all that reads it, or memory of it, takes the same ones.

Otherwise a folded weight would stand beside one that is read as it was, such as a tied table, or several
would stand where one was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.analysis.plan import Maps
from normfuse.analysis.reads import Read
from normfuse.analysis.weights import WeightValues
from normfuse.ir.dtypes import digits
from normfuse.ir.location import described
from normfuse.report import Refusal

__all__ = ["Move", "settle_ownership"]

#: What each reader is given by all norms before it, in their order.
_Taken = dict[Node, list[tuple[Maps, Maps]]]


@dataclass(frozen=True)
class Move:
    """How what a norm does behind its core reaches its readers: along this axis, by these maps.

    ``dtypes`` are those in which its values are held on the way. Which is the narrowest depends on what is
    asked: float16 holds the smaller numbers, bfloat16 fewer digits.
    """

    axis: int
    maps: Maps
    reads: list[Read]
    dtypes: frozenset[torch.dtype]

    @property
    def readers(self) -> set[Node]:
        return {read.node for read in self.reads}

    @property
    def meets_float16(self) -> bool:
        """Whether a value may be too large, or a weight too small, for a dtype on the way."""
        return torch.float16 in self.dtypes

    @property
    def coarsest(self) -> torch.dtype:
        """The dtype of fewest digits."""
        return min((dtype for dtype in self.dtypes if dtype.is_floating_point), key=digits)


def settle_ownership(moves: dict[Node, Move], weights: WeightValues) -> dict[Node, Refusal]:
    """Take out the moves of norms whose readers' weights are also read in another way, until none is left."""
    refused: dict[Node, Refusal] = {}
    while True:
        taken = _taken(moves)
        found = {node: _not_owned(move, taken, weights) for node, move in moves.items()}
        fresh = {node: refusal for node, refusal in found.items() if refusal is not None}
        if not fresh:
            return refused
        refused |= fresh
        for node in fresh:
            del moves[node]


def _taken(moves: dict[Node, Move]) -> _Taken:
    taken: _Taken = {}
    for move in moves.values():
        for read in move.reads:
            taken.setdefault(read.node, []).append((read.leaf.maps, read.maps))
    return taken


def _not_owned(move: Move, taken: _Taken, weights: WeightValues) -> Refusal | None:
    for read in move.reads:
        for other in sorted(weights.readers_of(read.leaf.node)):
            if taken.get(other) != taken[read.node]:
                how = "which would scale it in another way" if other in taken else "unchanged"
                return Refusal(
                    "weight_tied",
                    f"{weights.label(read.leaf.node)} is also read by {described(other)}, {how}",
                    read.node.name, "untie the weights",
                )  # fmt: skip
    return None
