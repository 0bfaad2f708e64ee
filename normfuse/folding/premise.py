"""What the choice of a rewrite rests on: facts about weights, asked for again when the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from normfuse.folding.recipe import Recipe
from normfuse.torch_compat import outside_tracing

__all__ = ["Asked", "BrokenPremiseError", "Fact", "Premise"]

#: The name of a norm, and the reason that keeps it as it is (``shift``: that gives its shift another place).
Fact = tuple[str, str]


@dataclass(frozen=True)
class Premise:
    """``holds`` takes the values of the recipes; ``sources`` are the inputs that each recipe reads."""

    fact: Fact
    recipes: tuple[Recipe, ...]
    sources: tuple[tuple[Node, ...], ...]
    holds: Callable[[Sequence[torch.Tensor]], bool]


@dataclass(frozen=True)
class Asked:
    """A premise of a compiled graph: where its sources stand among the inputs of a call."""

    premise: Premise
    positions: tuple[tuple[int, ...], ...]

    def is_met(self, inputs: Sequence[Any]) -> bool:
        """Whether it holds for these graph inputs."""
        pairs = zip(self.premise.recipes, self.positions, strict=True)
        values = [recipe.compute([inputs[p] for p in places]) for recipe, places in pairs]
        with outside_tracing():
            return self.premise.holds(values)


class BrokenPremiseError(Exception):
    """The weights are such that the graph would have been rewritten in another way.

    ``facts`` says in which, and ``weight`` is one of those that ask for it.
    """

    def __init__(self, broken: Sequence[Asked], inputs: Sequence[Any]) -> None:
        self.facts = frozenset(asked.premise.fact for asked in broken)
        read = [p for asked in broken for places in asked.positions for p in places]
        self.weight: torch.Tensor = inputs[read[0]]
        super().__init__(", ".join(f"{norm} ({reason})" for norm, reason in sorted(self.facts)))
