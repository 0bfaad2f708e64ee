"""What the choice of a rewrite rests on: facts about weights, asked for again when the weights change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.folding.recipe import Recipe
from normfuse.torch_compat import outside_tracing

__all__ = ["BrokenPremiseError", "Premise"]


class BrokenPremiseError(Exception):
    """The weights are such that the graph would have been rewritten in another way."""


@dataclass(frozen=True)
class Premise:
    """``holds`` takes the values of the recipes; ``sources`` are the inputs that each recipe reads."""

    recipes: tuple[Recipe, ...]
    sources: tuple[tuple[Node, ...], ...]
    holds: Callable[[Sequence[torch.Tensor]], bool]

    def is_met(self, weights: Callable[[Node], torch.Tensor]) -> bool:
        """Whether it holds for these values of the inputs."""
        pairs = zip(self.recipes, self.sources, strict=True)
        values = [recipe.compute([weights(s) for s in sources]) for recipe, sources in pairs]
        with outside_tracing():
            return self.holds(values)
