"""Which norms to leave alone when a rewrite is over budget: never none, and no more than are guilty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normfuse.verify.measure import OUTPUT, Verdict
from normfuse.verify.watch import Watch

__all__ = ["GENTLE_ROUNDS", "first_that_fails", "guilty_sites"]

GENTLE_ROUNDS = 4
"""So many sites are given up one at a time; after them all that are over budget."""


def guilty_sites(watch: Watch, verdict: Verdict, gentle: bool) -> set[int]:
    """The sites that their own values tell; none where only outputs, or norms left alone, are over budget.

    ``gentle`` asks for one at a time. A norm that was left alone and is over budget has weights that others
    changed: its stream is guilty.
    """
    changed = watch.changed
    blamed = [i for i in verdict.guilty if i in changed]
    innocent = [i for i in verdict.guilty if i != OUTPUT and i not in changed]
    if innocent and (not blamed or innocent[0] < blamed[0]):
        stream = watch.group(innocent[0])
        if stream:
            return stream
    return set(blamed[:1] if gentle else blamed)


def first_that_fails(changed: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> int:
    """The first site, in execution order, with which a rewrite of all up to it is over budget.

    ``fails`` tries a rewrite of the given sites alone; that of all of them is known to fail. By bisection:
    as many tries as the number of sites has binary digits.
    """
    low, high = 0, len(changed)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(changed[:middle]) else (middle, high)
    return changed[high - 1]
