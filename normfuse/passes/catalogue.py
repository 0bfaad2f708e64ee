"""Every rule by name: what it claims, how exactly, and who said so first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A rewrite: its equation, its source, and the conditions under which the equation holds here.

    ``forms`` are what the equation says by the place that it is used at, where there are several.
    """

    name: str
    numerics: Numerics
    equation: str
    source: str = ""
    conditions: tuple[str, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict)


_RULES = (
    Rule("functionalize", Numerics.BITWISE, "y = add_(x, r)  =>  y = add(x, r)"),
    Rule(
        "spell_out",
        Numerics.REASSOCIATED,
        "attention(x) = W_o softmax(q k' / sqrt(d)) v + b_o,  [q, k, v] = W x + b",
        "Vaswani et al. 2017, arXiv 1706.03762, equation 1",
        ("a known mask: it hides positions for all heads, for all queries, or for each", "on a CPU"),
    ),
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
    Rule(
        "fold_affine",
        Numerics.REASSOCIATED,
        "A(x) = D (x - mean) + shift is affine,  D = diag(scale / sqrt(variance + eps) + skip) per channel",
        "Ioffe, Szegedy 2015, arXiv 1502.03167, algorithm 2; Ding et al. 2021, arXiv 2101.03697, section 3.3",
        (
            "stored statistics: what the norm scales and shifts by is made of weights alone",
            "reached in full: every value between the norm and these operators is theirs alone",
            "changed weights: each takes D, and a bias the shift, in its own copy",
        ),
        {
            "before": "A(W a + b) = (D W) a + A(b)",
            "behind": "W A(x) + b = (W D) x + (b + W A(0))",
            "beside": "A(x) + W x + b = (D + W) x + (b + A(0))",
        },
    ),
    Rule(
        "fold_constants",
        Numerics.ROUNDING,
        "conv(x, standardise(W)) = conv(x, V),  V = standardise(W)",
        "Qiao et al. 2019, arXiv 1903.10520, equation 2",
        (
            "a constant: all that the norm reads is made of weights",
            "computed once: nothing writes to the weights, and no gradients are recorded",
            "changed weights: each is read through the result, in a copy",
        ),
    ),
)

CATALOGUE: dict[str, Rule] = {rule.name: rule for rule in _RULES}
