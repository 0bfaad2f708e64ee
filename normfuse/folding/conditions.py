"""What a checkpoint has to meet for a map to fit it: premises of the rewrite, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from normfuse.errors import InputError, cause
from normfuse.folding.premise import Premise, Question
from normfuse.folding.recipe import Recipe
from normfuse.folding.steps import decode_recipe, dtype_name, dtype_named, encode_recipe
from normfuse.ir.dtypes import FLOATS

__all__ = ["Computed", "Condition"]

_WHY = {
    "overflow": "a weight folded with {} would not be finite in {}, or too small to be precise",
    "cancellation": "the means in {} are so large beside the deviations that they would cancel in {}",
    "large_tap": "what is added to the result of a weight with {} is larger than that, and rounds it in {}",
    "large_bias": "the bias in {} is so large beside the weight that it may cancel values in {}",
    "shift": "the shift of a norm with {} is so large that adding it first would cost precision in {}",
}


@dataclass(frozen=True)
class Computed:
    """A value that ``steps`` make of the tensors called ``sources``, in this ``dtype``."""

    sources: tuple[str, ...]
    dtype: str
    steps: tuple[dict[str, Any], ...]

    def recipe(self) -> Recipe:
        """How to compute it.

        Raises:
            InputError: for steps that are damaged.
        """
        label = f"a condition on {', '.join(self.sources)}"
        return decode_recipe(self.steps, len(self.sources), dtype_named(self.dtype), label)


@dataclass(frozen=True)
class Condition:
    """A question about tensors of the model (:class:`normfuse.folding.Question`), and how to put it."""

    reason: str
    dtype: str
    eps: float
    places: tuple[int, ...]
    values: tuple[Computed, ...]

    @classmethod
    def of(cls, premise: Premise, names: Callable[[Any], str]) -> Condition:
        """The premise of a rewrite, with ``names`` for the inputs that it reads.

        Raises:
            InputError: when a value is computed by an operator that is not PyTorch's own.
        """
        asked = premise.question
        values = tuple(
            Computed(tuple(map(names, sources)), dtype_name(recipe.dtype), tuple(encode_recipe(recipe)))
            for recipe, sources in zip(premise.recipes, premise.sources, strict=True)
        )
        return cls(asked.reason, dtype_name(asked.dtype), asked.eps, asked.places, values)

    @classmethod
    def decoded(cls, held: Mapping[str, Any]) -> Condition:
        """The condition in a file.

        Raises:
            InputError, KeyError, TypeError, ValueError: for anything else.
        """
        values = tuple(Computed(tuple(v["sources"]), v["dtype"], tuple(v["steps"])) for v in held["values"])
        made = cls(held["reason"], held["dtype"], held["eps"], tuple(held["places"]), values)
        if not made._is_whole() or not _is_number(made.eps):
            raise ValueError(f"a condition of the kind {made.reason!r} on the operands {list(made.places)}")
        for value in values:
            value.recipe()
        if made.question().dtype not in FLOATS:
            raise ValueError(f"a condition in {made.dtype}")
        return made

    def _is_whole(self) -> bool:
        """Whether the question is about all that it needs."""
        if self.reason == "overflow":
            return not self.places and bool(self.values)
        if self.reason == "large_tap":
            return not self.places and len(self.values) == 2
        operands = set(map(repr, self.places))
        counts = len(operands) == len(self.places) == len(self.values)
        if self.reason == "large_bias":
            return counts and {"3"} <= operands <= {"2", "3"}
        return self.reason in _WHY and counts and {"0", "1"} <= operands <= {"0", "1", "2", "3"}

    def question(self) -> Question:
        return Question(self.reason, dtype_named(self.dtype), self.eps, self.places)

    def check(self, find: Callable[[str], torch.Tensor]) -> None:
        """Make sure that the tensors that ``find`` gives by name meet the condition.

        Raises:
            InputError: saying which do not.
        """
        names = ", ".join(dict.fromkeys(name for value in self.values for name in value.sources))
        if not self._is_met(names, find):
            raise InputError(
                f"the map does not fit: {_WHY[self.reason].format(names, self.dtype)}; "
                "rewrite the model with this checkpoint in it"
            )

    def _is_met(self, names: str, find: Callable[[str], torch.Tensor]) -> bool:
        found = [[find(name) for name in value.sources] for value in self.values]
        try:
            computed = [v.recipe().compute(sources) for v, sources in zip(self.values, found, strict=True)]
            return self.question().is_met(computed)
        except Exception as error:
            raise InputError(f"a condition on {names} cannot be checked: {cause(error)}") from error


def _is_number(eps: object) -> bool:
    return isinstance(eps, (int, float)) and not isinstance(eps, bool) and -1e300 < eps < 1e300
