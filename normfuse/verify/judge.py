"""The verdict on one leaf: reference and candidate in the model's dtype, oracle in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normfuse.errors import VerificationError
from normfuse.verify.compare import (
    comparable,
    distance,
    error_ratio,
    max_abs_error,
    max_rel_error,
    relative_error,
    same_finiteness,
)
from normfuse.verify.dtypes import is_narrow, is_real_number
from normfuse.verify.equivalence import LeafError
from normfuse.verify.independent import independent_errors
from normfuse.verify.reach import NO_REACH, Reach

__all__ = ["BUDGET", "DOUBLE_BOUND", "HOPELESS", "SPREAD", "NoYardstickError", "judge", "require_alike"]

BUDGET = 1.5
"""How many times the original's error a candidate may have."""

SPREAD = 3.0
"""Standard deviations of chance allowed on top, which only matters for outputs of a few numbers.

The ratio of the norms of two independent normal errors of n numbers each has a logarithm with the variance
psi'(n/2) / 2 (half the logarithm of an F variable): for 10,000 numbers the budget is 1.55, for 64 it is 2.2,
for 10 it is 4.1, and for a single number 167, whose own error may be next to nothing by chance.
"""

PEAK = 32.0
"""How many times the original's largest error that of a candidate may be.

The norm of many numbers hardly feels one that is plainly wrong. The largest of n errors varies little where
they are alike; where a single row or factor makes them large, two such errors have a ratio of more than 32 in
one case of fifty.
"""

HOPELESS = 0.1
"""Relative L2 error above which the original says nothing about a rewrite; such a leaf is not judged."""

DOUBLE_BOUND = 2**12 * torch.finfo(torch.float64).eps
"""Relative L2 distance to the reference allowed in float64, where the oracle rounds like the reference.

A rewrite reorders sums. Summing n terms in another order moves a result by about sqrt(n) * eps, which is 2**7
* eps for the widest layers in use (n = 2**14), and 2**5 such layers in a row may add up: 2**12 * eps =
9.1e-13.
"""


class NoYardstickError(VerificationError):
    """The reference does not say what is right for these inputs."""


def judge(
    path: str, reference: Tensor, candidate: Tensor, oracle: Tensor, reach: Reach = NO_REACH
) -> LeafError:
    """Measure and judge one leaf; raises ``VerificationError`` when shapes or dtypes differ.

    A floating leaf passes when ``error_ratio`` is within ``BUDGET`` and ``SPREAD`` and no number is further
    off than ``PEAK`` allows; in both the original's error counts as at least ``reach``, which is how far one
    rounding of inputs and weights carries the function. In float64 it also passes within ``DOUBLE_BOUND`` of
    the reference; there the ratio only decides where the reference is further than that from the oracle
    (float32 was inside) or the reach is known. It is not judged when no element is finite in both reference
    and oracle, when the reference is off by more than ``HOPELESS``, or when the reach says that rounding
    decides. Integers and booleans have to be equal.
    """
    require_alike(path, reference, candidate, oracle)
    if not is_real_number(reference.dtype):
        return _judge_exact(path, reference, candidate, reach)
    finite = same_finiteness(reference, candidate, oracle)
    r, c, o = comparable(reference, candidate, oracle)
    ratio = error_ratio(reference, candidate, oracle)
    allowed, good, reason = _measured(reference.dtype, (r, c, o), ratio, reach)
    hopeless = "" if not finite else _hopeless(reference, oracle, r, o) or reach.reason
    if not finite:
        reason = "not finite in the same places"
    return LeafError(
        path=path,
        dtype=reference.dtype,
        shape=tuple(reference.shape),
        max_abs_error=max_abs_error(c, o),
        max_rel_error=max_rel_error(c, o),
        error_ratio=ratio,
        judged=not hopeless,
        ok=finite and (bool(hopeless) or good),
        allowed=allowed,
        reason=hopeless or ("" if good and finite else reason),
    )


def _measured(
    dtype: torch.dtype, vectors: tuple[Tensor, Tensor, Tensor], ratio: float, reach: Reach
) -> tuple[float, bool, str]:
    """The ratio that is allowed, whether the leaf is good, and what is not where that is not the ratio."""
    r, c, o = vectors
    info = torch.finfo(dtype)
    own, size = distance(r, o), distance(o, torch.zeros_like(o))
    scale = max(own, info.eps * size, info.smallest_normal * info.eps)
    widened = max(1.0, reach.norm / scale)
    allowed = _allowed(r.numel()) * widened
    if allowed < ratio < math.inf:
        allowed = _allowed(independent_errors(r, o, info.eps)) * widened
    peak = max(max_abs_error(r, o), info.eps * max_abs_error(o, torch.zeros_like(o)), reach.peak)
    most = PEAK * _allowed(o.numel()) / BUDGET
    furthest = max_abs_error(c, o)
    usual = furthest <= most * peak
    good = ratio <= allowed and usual
    reason = f"one number is {furthest / peak:.3g} times as far off as any" if peak else "it misses a zero"
    reason = "" if usual or ratio > allowed else f"{reason} ({most:.3g} allowed)"
    if is_narrow(dtype):
        return allowed, good, reason
    if distance(c, r) <= DOUBLE_BOUND * distance(r, torch.zeros_like(r)):
        bound = (DOUBLE_BOUND * size + own) / scale
        return max(allowed, bound, ratio), True, ""
    return allowed, good and (own > DOUBLE_BOUND * size or reach.norm > 0.0), reason or _DOUBLE


_DOUBLE = f"further from the reference than a reordered sum explains ({DOUBLE_BOUND:.2g}, relatively)"


def _hopeless(reference: Tensor, oracle: Tensor, r: Tensor, o: Tensor) -> str:
    """Why the original says nothing about a candidate; empty where it does."""
    if reference.numel() and not r.numel():
        infinite = torch.isinf(oracle).any() if not oracle.is_complex() else torch.isinf(oracle.abs()).any()
        same = same_finiteness(oracle, reference.to(oracle.device), oracle)
        return "" if infinite and same else "the original holds no finite number there"
    off = relative_error(r, o)
    return f"the original is itself off by {off:.2g} times the value" if off > HOPELESS else ""


def _allowed(count: int) -> float:
    """For so many numbers, each with an error of its own."""
    deviation = math.sqrt(
        torch.special.polygamma(1, torch.tensor(max(count, 1) / 2.0, device="cpu")).item() / 2
    )
    return BUDGET * math.exp(SPREAD * deviation)


def require_alike(path: str, reference: Tensor, candidate: Tensor, oracle: Tensor) -> None:
    """Raises ``VerificationError`` when shapes or dtypes differ, so that entries cannot be compared.

    ``NoYardstickError`` when those of the reference depend on its own rounding.
    """
    for what in ("shape", "dtype"):
        expected, found = getattr(reference, what), getattr(candidate, what)
        if expected != found:
            raise VerificationError(
                f"{path} has {what} {expected} in the reference, {found} in the candidate."
            )
    if oracle.shape != reference.shape:
        raise NoYardstickError(f"{path} has another size in float64: what it holds depends on rounding.")


def _judge_exact(path: str, reference: Tensor, candidate: Tensor, reach: Reach) -> LeafError:
    r, c = (t.detach().cpu() for t in (reference, candidate))
    if reach.decided is not None:
        c = torch.where(reach.decided.cpu(), r, c)
    equal = torch.equal(r, c)
    return LeafError(
        path=path,
        dtype=r.dtype,
        shape=tuple(r.shape),
        max_abs_error=0.0 if equal else max_abs_error(c.double(), r.double()),
        max_rel_error=0.0 if equal else max_rel_error(c.double(), r.double()),
        error_ratio=0.0 if equal else float("inf"),
        judged=True,
        ok=equal,
        reason="" if equal else "integers and booleans have to be equal",
    )
