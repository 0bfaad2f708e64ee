"""Every rule by name: what it claims, how exactly, and who said so first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["CATALOGUE", "Numerics", "Rule"]


class Numerics(str, Enum):
    """How far the result of a rule may be from what it replaces.

    BITWISE: not at all. ROUNDING: the same sums, rounded elsewhere. REASSOCIATED: the same number in exact
    arithmetic, by other sums; judged against float64.
    """

    BITWISE = "bitwise"
    ROUNDING = "rounding"
    REASSOCIATED = "reassociated"


@dataclass(frozen=True)
class Rule:
    """A rewrite: its equation, its source, and the conditions under which the equation holds here."""

    name: str
    numerics: Numerics
    equation: str
    source: str = ""
    conditions: tuple[str, ...] = ()


_RULES = (
    Rule("functionalize", Numerics.BITWISE, "y = add_(x, r)  =>  y = add(x, r)"),
    Rule("canonicalize", Numerics.BITWISE, "to(x, x.dtype) = x,  dropout(x, p, train=False) = x"),
    Rule("lift", Numerics.BITWISE, "a norm is the operators it was spelled with"),
    Rule(
        "recentre",
        Numerics.REASSOCIATED,
        "LN_eps(sum_k W_k a_k + b_k) = RMS_eps(sum_k (C W_k) a_k + C b_k),  C = I - 11'/d",
        "Jiang et al. 2023, arXiv 2305.14858, section 3",
        (
            "written by weights: every value of the stream that the norm reads is linear in weights, "
            "zero, or centred explicitly",
            "indifferent readers: nothing that reads such a value wants its mean",
            "changed weights: each takes the maps C and diag(s), in its own copy",
        ),
    ),
)

CATALOGUE: dict[str, Rule] = {rule.name: rule for rule in _RULES}
