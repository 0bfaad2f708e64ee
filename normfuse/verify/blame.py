"""Which norms to leave alone when a rewrite is over budget: never none, and no more than are guilty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from normfuse.verify.measure import OUTPUT, Verdict
from normfuse.verify.watch import Pair, Watch

__all__ = ["GENTLE_ROUNDS", "first_that_fails", "guilty_sites"]

GENTLE_ROUNDS = 4
"""So many rewrites are given up one at a time; after them one of every site over budget."""


def guilty_sites(watch: Watch, verdict: Verdict, gentle: bool) -> set[int]:
    """The sites that their own values tell; none where only outputs, or norms left alone, are over budget,
    or where one that changed before them shows no value of its own.

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
    if gentle and blamed and any(i < blamed[0] and i not in watch.left for i in changed):
        return set()
    return set(blamed[:1] if gentle else blamed)


def first_that_fails(changed: Sequence[Pair], fails: Callable[[Sequence[Pair]], bool]) -> Pair:
    """The first rewrite, in execution order, with which all up to it are over budget.

    ``fails`` tries the given ones alone; all of them together are known to fail. By bisection: as many
    tries as their number has binary digits.
    """
    low, high = 0, len(changed)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(changed[:middle]) else (middle, high)
    return changed[high - 1]
