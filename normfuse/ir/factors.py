"""Two ways to count the same elements, row after row, by axes: the finest axes that both are made of.

    (4, 6) and (8, 3)    are both made of    (4, 2, 3)

Sizes may be symbolic. What is provably the same is matched from both ends; of what lies between, one axis
that becomes several, or several that become one, need no proof, since both count the same elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from normfuse.ir.sizes import same, same_product

__all__ = ["Factors", "common_factors"]

_Sizes = Sequence[Any]


class Factors(NamedTuple):
    """``sizes`` of axes; how many of them, in a row, each axis of the one way and of the other is made of."""

    sizes: list[Any]
    left: list[int]
    right: list[int]

    def then(self, other: Factors) -> Factors:
        """These, and behind them others."""
        return Factors(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def common_factors(left: _Sizes, right: _Sizes) -> Factors | None:
    """The axes that both ways are made of; None where they are not known to be made of any."""
    before, behind = Factors([], [], []), Factors([], [], [])
    while (ends := _ends(left, right, behind=False)) is not None:
        i, j = ends
        before = before.then(_of_one(left[:i], right[:j]))
        left, right = left[i:], right[j:]
    while (ends := _ends(left, right, behind=True)) is not None:
        i, j = len(left) - ends[0], len(right) - ends[1]
        behind = _of_one(left[i:], right[j:]).then(behind)
        left, right = left[:i], right[:j]
    between = _between(left, right)
    return None if between is None else before.then(between).then(behind)


def _ends(left: _Sizes, right: _Sizes, *, behind: bool) -> tuple[int, int] | None:
    """The shortest runs, one of them a single axis, at one end that provably hold as many elements."""
    lengths = product(range(1, len(left) + 1), range(1, len(right) + 1))
    for i, j in sorted(lengths, key=sum):
        runs = (left[-i:], right[-j:]) if behind else (left[:i], right[:j])
        if 1 in (i, j) and same_product(*runs):
            return i, j
    return None


def _of_one(left: _Sizes, right: _Sizes) -> Factors:
    """One axis that several are made of, or that is made of several."""
    if len(left) == 1:
        return Factors(list(right), [len(right)], [1] * len(right))
    return Factors(list(left), [1] * len(left), [len(left)])


def _between(left: _Sizes, right: _Sizes) -> Factors | None:
    if not left or not right:
        return Factors([], [], []) if not left and not right else None
    if 1 in (len(left), len(right)):
        fixed = all(isinstance(size, int) for size in (*left, *right))
        return None if fixed else _of_one(left, right)  # fixed sizes would have been found the same
    return _divided(left, right)


def _divided(left: _Sizes, right: _Sizes) -> Factors | None:
    """From the outermost on, the smaller of two axes divides the larger one."""
    sizes, counts = list[Any](), ([0] * len(left), [0] * len(right))
    rest, at = [left[0], right[0]], [0, 0]
    while True:
        ratios = (_ratio(rest[0], rest[1]), _ratio(rest[1], rest[0]))
        larger = next((i for i, ratio in enumerate(ratios) if ratio is not None), None)
        if larger is None:
            return None
        sizes.append(rest[1 - larger])
        rest = [1, 1]
        rest[larger] = ratios[larger]
        for i, given in enumerate((left, right)):
            counts[i][at[i]] += 1
            if same(rest[i], 1):
                at[i] += 1
                rest[i] = given[at[i]] if at[i] < len(given) else 1
        if at == [len(left), len(right)]:
            return Factors(sizes, *counts)
        if at[0] == len(left) or at[1] == len(right):
            return None


def _ratio(whole: Any, part: Any) -> Any | None:
    """How often a size holds another one, where it provably does so without a rest."""
    if same(part, 0):
        return None
    ratio = whole // part
    return ratio if same(ratio * part, whole) else None
