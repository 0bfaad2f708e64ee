"""Whether a rule keeps what its numerics class promises.

bitwise        the same bits, nan where there was nan
rounding       |candidate - reference| <= 4 eps max|reference|, element by element
reassociated   within the error budget against float64 (``normfuse.verify.judge``)
approximate    within the bound that the rule states: ``normfuse.verify.approximation`` judges that
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normfuse.passes.rule import Numerics
from normfuse.verify.compare import comparable, is_finite, same_finiteness
from normfuse.verify.dtypes import is_real_number
from normfuse.verify.equivalence import LeafError
from normfuse.verify.judge import judge, require_alike
from normfuse.verify.reach import NO_REACH, Reach

__all__ = [
    "ROUNDING_BOUND",
    "judge_but_overflow",
    "judge_where_finite",
    "keeps_class",
    "one_rounding_off",
    "same_bits",
]

ROUNDING_BOUND = 4.0
"""Units in the last place of the largest element: the same sums, and at most four operators that round
differently (a root, a reciprocal, and two products)."""


def keeps_class(numerics: Numerics, reference: Tensor, candidate: Tensor, oracle: Tensor) -> bool:
    """Whether ``candidate`` stands to ``reference`` as a rule of this class says; three equal shapes.

    ``oracle`` is the float64 result, which only the class *reassociated* looks at.
    """
    if numerics is Numerics.BITWISE:
        return same_bits(reference, candidate)
    if numerics is Numerics.REASSOCIATED:
        return judge_where_finite("value", reference, candidate, oracle).ok
    if not reference.is_floating_point():
        return torch.equal(reference, candidate)
    r, c, _ = comparable(reference, candidate, reference.double())
    bound = ROUNDING_BOUND * torch.finfo(reference.dtype).eps * float(r.abs().max()) if r.numel() else 0.0
    return same_finiteness(reference, candidate) and bool(((c - r).abs() <= bound).all())


def same_bits(reference: Tensor, candidate: Tensor) -> bool:
    """Equal shapes, dtypes and values; nan equals nan."""
    alike = reference.shape == candidate.shape and reference.dtype == candidate.dtype
    return alike and bool(
        torch.eq(reference, candidate).logical_or(reference.isnan() & candidate.isnan()).all()
    )


def one_rounding_off(value: Any, draw: int = 0) -> Any:
    """A floating tensor with every number moved by one unit in its last place, up or down; else the value.

    Equal draws move numbers alike.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    signs = torch.arange(value.numel(), device=value.device).reshape(value.shape) + 7919 * draw
    step = torch.finfo(value.dtype).eps * (1 - 2 * (signs * 2654435761 // 65536 % 2))
    return value.detach() * (1 + step.to(value.dtype))


def judge_where_finite(
    path: str, reference: Tensor, candidate: Tensor, oracle: Tensor, reach: Reach = NO_REACH
) -> LeafError:
    """``judge``, on the elements that the original computes at all.

    Where the original overflows or is nan it says nothing about a rewrite, also not by being so.
    """
    require_alike(path, reference, candidate, oracle)
    if is_real_number(reference.dtype):
        defined = is_finite(reference) & is_finite(oracle).to(reference.device)
        candidate = torch.where(defined, candidate, reference)
    return judge(path, reference, candidate, oracle, reach)


def judge_but_overflow(
    path: str,
    reference: Tensor,
    candidate: Tensor,
    oracle: Tensor,
    reach: Reach = NO_REACH,
    *,
    hostile: bool = False,
) -> LeafError:
    """``judge``, without the elements that the original fails to compute although they are ordinary numbers.

    What it overflowed on is no yardstick. What is infinite or nan in float64 too has to be so in both. On
    ``hostile`` inputs an index or a comparison is none either: ties and overflow decide it.
    """
    require_alike(path, reference, candidate, oracle)
    if is_real_number(reference.dtype):
        failed = ~is_finite(reference) & is_finite(oracle).to(reference.device)
        candidate = torch.where(failed, reference, candidate)
    elif hostile:
        leaf = judge(path, reference, reference, oracle)
        return replace(leaf, judged=False, reason="ties and overflow decide it on such inputs")
    return judge(path, reference, candidate, oracle, reach)
