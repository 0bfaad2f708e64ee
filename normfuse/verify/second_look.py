"""A value over budget is looked at twice more before anything is said.

First, what is one rounding of inputs and weights worth here (``normfuse.verify.reach``)? Then, where it is
over budget by less than ``NARROW``, is it chance? All is run again on inputs that are one rounding off, where
every error is drawn anew, and the median of three verdicts counts. A rewrite that is wrong is wrong on all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

from torch import Tensor

from normfuse.errors import VerificationError
from normfuse.verify.equivalence import LeafError
from normfuse.verify.reach import NO_REACH, Reach, keeps_half_its_digits

__all__ = ["NARROW", "Again", "JudgeOne", "Values", "judged_twice"]

K = TypeVar("K", bound=Hashable)

Values = Mapping[K, tuple[Tensor, Tensor, Tensor]]
"""Reference, candidate and oracle of every value."""

JudgeOne = Callable[[K, Tensor, Tensor, Tensor, Reach], LeafError]

NARROW = 32.0
"""How many times the budget is beyond all chance: what is allowed already holds three standard deviations."""

_CARRIED = 2
_DRAWS = 3


class Again(Protocol[K]):
    """What can be run once more, for the inputs that were just judged; either may raise."""

    def carried(self, draw: int) -> Mapping[K, Tensor]:
        """The oracle for inputs and weights that were rounded once."""

    def nearby(self, draw: int) -> Values[K]:
        """All three for inputs that are one rounding off."""


def judged_twice(
    values: Values[K], again: Again[K], judge_one: JudgeOne[K], hostile: bool
) -> dict[K, LeafError]:
    """The verdict on every value, by the same keys."""
    found = {key: judge_one(key, *held, NO_REACH) for key, held in values.items()}
    doubtful = [key for key, leaf in found.items() if not leaf.ok]
    if not doubtful:
        return found
    reaches = _reaches(values, doubtful, again, hostile)
    found |= {key: judge_one(key, *values[key], reaches[key]) for key in doubtful}
    doubtful = [key for key in doubtful if not found[key].ok and _badness(found[key]) <= (True, NARROW)]
    first = {key: (found[key], values[key]) for key in doubtful}
    return found | _medians(first, reaches, again, judge_one)


def _reaches(values: Values[K], doubtful: list[K], again: Again[K], hostile: bool) -> dict[K, Reach]:
    moved: dict[K, list[Tensor]] = {key: [] for key in doubtful}
    for draw in range(_CARRIED):
        with suppress(VerificationError):  # no oracle there: the first look stands
            carried = again.carried(draw)
            for key in doubtful:
                moved[key] += [carried[key]] if key in carried else []
    return {key: Reach.of(values[key][0], values[key][2], moved[key], hostile) for key in doubtful}


def _medians(
    first: Mapping[K, tuple[LeafError, tuple[Tensor, Tensor, Tensor]]],
    reaches: Mapping[K, Reach],
    again: Again[K],
    judge_one: JudgeOne[K],
) -> dict[K, LeafError]:
    drawn = {key: [leaf] for key, (leaf, _) in first.items()}
    for draw in range(1, _DRAWS) if first else ():
        with suppress(VerificationError):  # the original may not take them
            values = again.nearby(draw)
            for key, (_, (reference, _, oracle)) in first.items():
                if key in values and keeps_half_its_digits(reference, oracle, values[key][2]):
                    drawn[key].append(judge_one(key, *values[key], reaches[key]))
    return {key: sorted(leaves, key=_badness)[(len(leaves) - 1) // 2] for key, leaves in drawn.items()}


def _badness(leaf: LeafError) -> tuple[bool, float]:
    return not leaf.ok, leaf.error_ratio / leaf.allowed if leaf.allowed else leaf.error_ratio
