"""Algebra on facts: powers, factors and eps, whatever operators they were written with."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.changed import changed
from normfuse.ir.sizes import shape_of, static_size, tensor_of
from normfuse.patterns.facts import Fact, Stage

__all__ = [
    "clamped", "count", "divided_by_count", "dtype_of", "is_moderate", "number", "plus", "power", "stays",
    "times", "trailing",
]  # fmt: skip

HALF = Fraction(1, 2)
#: Factors up to this one and down to its inverse can be squared, and their squares too, with room to spare.
_LARGEST = 2.0**128
_EXPONENTS = (Fraction(1), HALF, -HALF, Fraction(-1))


def trailing(dims: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the end, sorted."""
    chosen = dims if isinstance(dims, (list, tuple)) else [dims]
    return tuple(sorted(d - ndim if d >= 0 else d for d in chosen))


def dtype_of(node: Node) -> torch.dtype | None:
    """The dtype of the tensor a node stands for."""
    value = tensor_of(node)
    return None if value is None else value.dtype


def stays(node: Node, fact: Fact | None) -> Fact | None:
    """A fact is only a fact as long as nothing rounds the value on the way."""
    if fact is None or fact.flaw:
        return fact
    return fact if dtype_of(node) == (fact.factor_dtype or fact.compute_dtype) else None


def number(value: object) -> float | None:
    """A positive number written into the graph, unless it is as large as none of a norm is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _LARGEST:
        return float(value)
    return None


def is_moderate(factor: float) -> bool:
    """Whether the squares and inverses of a factor are normal numbers, and so is what they multiply."""
    return 1 / _LARGEST <= abs(factor) <= _LARGEST


def count(fact: Fact) -> int | None:
    """How many elements share one statistic, with one that is not stored, where that is a plain number."""
    sizes = [static_size(fact.source, d) for d in fact.dims]
    if shape_of(fact.source) is None or None in sizes:
        return None
    return math.prod(s for s in sizes if s) + (fact.basis == "drop_last")


def power(fact: Fact, exponent: float | Fraction) -> Fact | None:
    """A statistic raised to a power; one that a weight multiplies is not looked into."""
    if not math.isfinite(exponent) or fact.scale is not None:
        return None
    made = fact.exponent * Fraction(exponent)
    if made not in _EXPONENTS:
        return None
    factor = fact.factor ** float(exponent)
    return changed(fact, exponent=made, factor=factor) if is_moderate(factor) else None


def times(fact: Fact, factor: float) -> Fact | None:
    """A statistic or a mean times a positive number."""
    made = fact.factor * factor
    return changed(fact, factor=made) if is_moderate(made) else None


def divided_by_count(fact: Fact) -> bool:
    """Whether a sum was divided by the number of its elements."""
    if fact.divisor is None:
        return fact.factor == 1
    elements = count(fact)
    return elements is not None and math.isclose(fact.divisor, fact.factor * elements, rel_tol=1e-12)


def _without_factor(fact: Fact) -> Fact | None:
    """The same statistic with its factor taken into the divisor."""
    if fact.factor == 1:
        return fact
    divisor = fact.divisor if fact.divisor is not None else count(fact)
    if divisor is None:
        return None
    return changed(fact, factor=1.0, divisor=divisor / fact.factor ** float(1 / fact.exponent))


def plus(fact: Fact, eps: float | Node) -> Fact | None:
    """A statistic plus eps: inside the root, or outside of it."""
    if eps == 0:
        return fact
    bare = _without_factor(fact) if fact.eps == 0 else None
    if bare is None or fact.exponent not in (1, HALF):
        return None
    return changed(bare, eps=eps, eps_mode="inside" if fact.exponent == 1 else "outside")


def clamped(fact: Fact, least: float | Node) -> Fact | None:
    """A statistic that is at least so large; a bound below a mean square bounds its root."""
    bare = _without_factor(fact) if fact.eps == 0 else None
    if bare is None or fact.exponent not in (1, HALF) or fact.stage is not Stage.STATISTIC:
        return None
    if fact.exponent == 1:
        return changed(bare, eps=math.sqrt(least), eps_mode="clamp") if isinstance(least, float) else None
    return changed(bare, eps=least, eps_mode="clamp")
