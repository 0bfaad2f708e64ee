"""Note what the folding of a stored norm rests on, for the call at which the weights are others.

What was refused for its values stays refused, which is right for all values. It is asked again when a folded
weight is: where gradients are recorded, the algebra on weights that train runs at each call and nobody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.folding import Premise
from normfuse.ir.program import Program
from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.passes.hoist import recipe_of
from normfuse.passes.stored_values import Moments

__all__ = ["rest_on_range", "rest_on_statistics"]

Values = Sequence[torch.Tensor]


@dataclass(frozen=True)
class _Usable:
    """Statistics by which a norm with this ``eps`` may be folded; ``places`` are the operands given.

    What is no statistics at all, nan or a negative variance, leaves no folded weight finite.
    """

    eps: float
    dtype: torch.dtype
    is_behind: bool
    is_large: bool
    places: tuple[int, ...]

    def __call__(self, values: Values) -> bool:
        bound: list[torch.Tensor | None] = [None] * 4
        for place, value in zip(self.places, values, strict=True):
            bound[place] = value
        mean, variance, scale, shift = bound
        assert mean is not None
        assert variance is not None
        found = Moments.of(self.eps, mean, variance, scale, shift)
        if self.is_behind and found.cancel(self.dtype):
            return False
        return self.is_large or self.dtype != torch.float32 or not found.shift_is_large()


def rest_on_statistics(
    program: Program, operands: Operands, eps: float, dtype: torch.dtype, *, is_behind: bool, is_large: bool
) -> None:
    """Readers that take the norm go on losing nothing, and its shift stays small if it was.

    ``is_behind`` says that what follows the norm takes it, ``is_large`` that the shift has its safe place.
    """
    if operands.mean is None or operands.variance is None:
        return
    given = (operands.mean, operands.variance, operands.scale, operands.shift)
    places = tuple(i for i, node in enumerate(given) if node is not None and tensor_of(node) is not None)
    nodes = [node for i in places if (node := given[i]) is not None]
    _note(program, nodes, _Usable(eps, dtype, is_behind, is_large, places))


def _is_finite(values: Values) -> bool:
    return bool(torch.isfinite(values[0]).all())


def rest_on_range(program: Program, folded: Iterable[Node]) -> None:
    """The folded weights stay finite in their dtype."""
    for weight in folded:
        _note(program, [weight], _is_finite)


def _note(program: Program, nodes: Sequence[Node], holds: Callable[[Values], bool]) -> None:
    recipes, sources = zip(*(recipe_of(program, node) for node in nodes), strict=True)
    program.premises.append(Premise(recipes, sources, holds))
