"""Note what the folding of a stored norm rests on, for the call at which the weights are others.

What was refused for its values stays refused, which is right for all values. It is asked again when a folded
weight is: where gradients are recorded, the algebra on weights that train runs at each call and nobody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.fx import Node

from normfuse.folding import Fact, Premise
from normfuse.ir.program import Program
from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.passes.hoist import recipe_of
from normfuse.passes.stored_values import Moments, fits, held_in

__all__ = ["rest_on_precision", "rest_on_range", "rest_on_small_shift"]

Values = Sequence[torch.Tensor]


@dataclass(frozen=True)
class _About:
    """Asks something of the moments of a norm with this ``eps``; ``places`` are the operands given.

    What is no statistics at all, nan or a negative variance, leaves no folded weight finite.
    """

    eps: float
    places: tuple[int, ...]
    holds: Callable[[Moments], bool]

    def __call__(self, values: Values) -> bool:
        bound: list[torch.Tensor | None] = [None] * 4
        for place, value in zip(self.places, values, strict=True):
            bound[place] = value
        mean, variance, scale, shift = bound
        assert mean is not None
        assert variance is not None
        return self.holds(Moments.of(self.eps, mean, variance, scale, shift))


def rest_on_precision(program: Program, norm: Node, operands: Operands, eps: float) -> None:
    """What reads the norm and takes it goes on losing nothing."""
    dtype = norm.meta["val"].dtype
    _note_moments(program, (norm.name, "cancellation"), operands, eps, lambda found: not found.cancel(dtype))


def rest_on_small_shift(program: Program, norm: Node, operands: Operands, eps: float) -> None:
    """The shift of the norm stays small enough for any place."""
    if norm.meta["val"].dtype == torch.float32:
        _note_moments(program, (norm.name, "shift"), operands, eps, lambda found: not found.shift_is_large())


def _note_moments(
    program: Program, fact: Fact, operands: Operands, eps: float, holds: Callable[[Moments], bool]
) -> None:
    if operands.mean is None or operands.variance is None:
        return
    given = (operands.mean, operands.variance, operands.scale, operands.shift)
    places = tuple(i for i, node in enumerate(given) if node is not None and tensor_of(node) is not None)
    nodes = [node for i in places if (node := given[i]) is not None]
    _note(program, fact, nodes, _About(eps, places, holds))


def rest_on_range(program: Program, norm: Node, folded: Iterable[Node]) -> None:
    """The dtype of the weights that the norm is folded into can hold them."""
    for weight in folded:
        recipe, sources = recipe_of(program, weight)
        holds = partial(_fits, held_in(norm, recipe))
        wide = replace(recipe, dtype=torch.float64)
        program.premises.append(Premise((norm.name, "overflow"), (wide,), (sources,), holds))


def _fits(dtype: torch.dtype, values: Values) -> bool:
    return fits(values[0], dtype)


def _note(program: Program, fact: Fact, nodes: Sequence[Node], holds: Callable[[Values], bool]) -> None:
    recipes, sources = zip(*(recipe_of(program, node) for node in nodes), strict=True)
    program.premises.append(Premise(fact, recipes, sources, holds))
