"""What the choice of a rewrite rests on: facts about weights, asked for again when the weights change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from normfuse.folding.precision import Moments, divides, fits, is_mild, may_cancel
from normfuse.folding.recipe import Recipe
from normfuse.folding.whole import can_hold
from normfuse.torch_compat import outside_tracing

__all__ = ["Asked", "BrokenPremiseError", "Fact", "Premise", "Question"]

#: The name of a norm, and the reason that keeps it as it is (``shift``: that gives its shift another place).
Fact = tuple[str, str]


@dataclass(frozen=True)
class Question:
    """What is asked of weights: whether a norm's ``reason`` to stay is *not* there, in this ``dtype``.

    The values asked about are one folded weight for ``"overflow"``; for ``"large_tap"`` a weight with what
    stands beside it and without; for ``"factor"`` the one entry that multiplies what a norm reads; for
    ``"divisor"`` what each channel is divided by. For
    ``"cancellation"`` and ``"shift"`` they are operands of a norm with this ``eps``, of which ``places`` says
    which: 0 is the mean, 1 the variance, 2 the scale, 3 the shift; for ``"large_bias"`` the last two alone.
    What is no statistics at all, nan or a negative variance, leaves no folded weight finite.
    """

    reason: str
    dtype: torch.dtype
    eps: float = 0.0
    places: tuple[int, ...] = ()

    def is_met(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether these values give no such reason."""
        with outside_tracing():
            if self.reason == "overflow":
                return all(fits(value, self.dtype) for value in values)
            if self.reason == "large_bias":
                held = dict(zip(self.places, values, strict=True))
                return not may_cancel(held.get(2), held[3], self.dtype)
            if self.reason == "factor":
                return all(is_mild(float(value), self.eps, self.dtype) for value in values)
            if self.reason == "divisor":
                return all(divides(value, self.dtype) for value in values)
            if self.reason == "large_tap":
                changed, weight = (value.double() for value in values)
                return bool((changed - weight).norm() <= weight.norm())
            found = self._moments(values)
            return not (found.cancel(self.dtype) if self.reason == "cancellation" else found.shift_is_large())

    def _moments(self, values: Sequence[torch.Tensor]) -> Moments:
        bound: list[torch.Tensor | None] = [None] * 4
        for place, value in zip(self.places, values, strict=True):
            bound[place] = value
        mean, variance, scale, shift = bound
        assert mean is not None
        assert variance is not None
        return Moments.of(self.eps, mean, variance, scale, shift)


@dataclass(frozen=True)
class Premise:
    """A question whose answer has to be yes; ``sources`` are the inputs that each recipe reads."""

    norm: str
    question: Question
    recipes: tuple[Recipe, ...]
    sources: tuple[tuple[Node, ...], ...]

    @property
    def fact(self) -> Fact:
        return self.norm, self.question.reason

    def is_met(self, sources: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Whether it holds for these sources of each recipe."""
        pairs = zip(self.recipes, sources, strict=True)
        if self.question.reason == "overflow":
            return all(can_hold(recipe, given, self.question.dtype) for recipe, given in pairs)
        return self.question.is_met([recipe.value(given) for recipe, given in pairs])


@dataclass(frozen=True)
class Asked:
    """A premise of a compiled graph: where its sources stand among the inputs of a call."""

    premise: Premise
    positions: tuple[tuple[int, ...], ...]

    def is_met(self, inputs: Sequence[Any]) -> bool:
        """Whether it holds for these graph inputs."""
        return self.premise.is_met([[inputs[p] for p in places] for places in self.positions])

    @property
    def places(self) -> frozenset[int]:
        return frozenset(place for places in self.positions for place in places)

    def reads_no_number(self, inputs: Sequence[Any]) -> bool:
        """Whether one of its sources holds nan or infinity, so that all that is made of it does."""
        with outside_tracing():
            return not all(bool(torch.isfinite(inputs[place]).all()) for place in self.places)


class BrokenPremiseError(Exception):
    """The weights are such that the graph would have been rewritten in another way.

    ``facts`` says in which, and ``weight`` is one of those that ask for it.
    """

    def __init__(self, broken: Sequence[Asked], inputs: Sequence[Any]) -> None:
        broken = _at_fault(broken, inputs)
        self.facts = frozenset(asked.premise.fact for asked in broken)
        read = [p for asked in broken for places in asked.positions for p in places]
        self.weight: torch.Tensor = inputs[read[0]]
        super().__init__(", ".join(f"{norm} ({reason})" for norm, reason in sorted(self.facts)))


def _at_fault(broken: Sequence[Asked], inputs: Sequence[Any]) -> list[Asked]:
    """Without those about a weight that took the map of another norm first, where that made it no number."""
    spoilt = [one for one in broken if one.reads_no_number(inputs)]
    return [
        one for one in broken
        if not any(o.places < one.places and o.premise.norm != one.premise.norm for o in spoilt)
    ]  # fmt: skip
