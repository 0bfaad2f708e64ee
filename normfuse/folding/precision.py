"""What a folded weight costs in precision, by the entries of the weights that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from normfuse.torch_compat import outside_tracing

__all__ = ["Moments", "divides", "fits", "is_mild", "may_cancel"]

#: How much larger, as a mean square, a value may be than its norm where readers take the norm. In a sum
#: of products rounding errors grow with the values; 2 keeps them below 1.5 times what they were. In half
#: precision the rounding that falls away leaves more room, in float64 there is precision to spare.
_ROOM = {torch.float32: 2.0, torch.bfloat16: 16.0, torch.float16: 16.0, torch.float64: 1e4}

#: How large a norm's bias may be beside its weight where readers add what becomes of it. They round values
#: of the size ``|w N|``, not of ``|w N + b| >= |w N| - |b|``: up to ``1 / (1 - r)`` times more, for
#: ``|b| = r |w N|``. That times what the rounding of the weight costs, which joins two others in a narrow
#: dtype and is lost among those of the sum in float32, is held to 1.5: ``r = 1 - 1 / 1.5`` in float32,
#: ``r = 1 - sqrt(3 / 2) / 1.5`` in the others.
_LARGEST_BIAS = {torch.float32: 0.333, torch.bfloat16: 0.183, torch.float16: 0.183}


@dataclass(frozen=True)
class Moments:
    """Mean and deviation of what a norm reads, in units of what it returns, and its shift; per channel."""

    mean: torch.Tensor
    deviation: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(
        cls,
        eps: float,
        mean: torch.Tensor,
        variance: torch.Tensor,
        scale: torch.Tensor | None,
        shift: torch.Tensor | None,
    ) -> Moments:
        """By the stored statistics."""
        mean, variance = mean.double().flatten(), variance.double().flatten()
        scale, shift = (None if v is None else v.double().flatten() for v in (scale, shift))
        gain = (variance + eps).rsqrt() * (1.0 if scale is None else scale)
        return cls(gain * mean, gain * variance.sqrt(), torch.zeros_like(mean) if shift is None else shift)

    def cancel(self, dtype: torch.dtype) -> bool:
        """Whether what reads the norm would lose too much by subtracting the mean itself."""
        normed = self.deviation**2 + self.shift**2
        return not bool((self.deviation**2 + self.mean**2).sum() <= _ROOM[dtype] * normed.sum())

    def shift_is_large(self) -> bool:
        """Whether a sum of products that starts from the folded shift would lose more than a norm behind it.

        A running sum from ``s`` to ``e`` with the variance ``v`` in the end has on its way the mean square
        ``(s s + s e + e e) / 3 + v / 2``, and in each step a rounding error in proportion. The norm lets it
        run from 0 to the mean, the fold from ``shift - mean`` to the shift.
        """
        start, end = self.shift - self.mean, self.shift
        way = (start**2 + start * end + end**2) / 3 + self.deviation**2 / 2
        return bool(way.sum() > _ROOM[torch.float32] * (self.mean**2 / 3 + self.deviation**2 / 2).sum())


def may_cancel(scale: torch.Tensor | None, shift: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the bias of a norm may cancel so much of its values that readers had better not add it.

    Of the data only the size is known, which is 1 for each channel as a root mean square. In float64 there is
    precision to spare.
    """
    if dtype not in _LARGEST_BIAS:
        return False
    size, largest = 1.0 if scale is None else _size(scale), _LARGEST_BIAS[dtype]
    return not _size(shift) <= largest * size


def _size(value: torch.Tensor) -> float:
    return float(value.double().pow(2).mean().sqrt())


def fits(wide: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a dtype holds a folded weight: finite, and float16 with the precision of its normal numbers.

    What is no normal number in the other dtypes, below 1e-38, belongs to a dead channel. A convolution's
    output sums over a row, and what a column is multiplied by may be as large as the column is small, so
    every row and every column is held to it.
    """
    with outside_tracing():
        # Rounding keeps order, and what is no number counts as largest and smallest: two entries tell.
        if wide.numel() and not all(bool(v.to(dtype).isfinite()) for v in wide.aminmax()):
            return False
        if dtype != torch.float16:
            return True
        narrow = wide.to(dtype)
        roundoff = torch.finfo(dtype).eps / 2
        sides = range(wide.dim())[:2] if wide.dim() > 1 else ()
        return all(_is_close(narrow.double(), wide, side, roundoff) for side in sides)


def is_mild(factor: float, eps: float, dtype: torch.dtype) -> bool:
    """Whether ``x`` is squared as well as ``factor * x`` is, with ``eps`` over or times its square.

    A factor may move the bounds between which squares are exact by an eighth of the dtype's exponents: in
    float32 by 2**16 of the 2**64 that a value may have. What is squared near a bound is lost either way.
    """
    info = torch.finfo(dtype)
    if not 0 < factor < math.inf or abs(math.log2(factor)) > math.log2(info.max) / 8:
        return False
    sizes = (abs(eps) * factor**2, abs(eps) / factor**2) if eps else ()
    return all(info.smallest_normal <= size <= info.max for size in sizes)


def divides(factors: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether values of this dtype can be held divided by these factors, one for each channel.

    As with one factor, an eighth of the exponents is to spare; none is in float16, where values do meet the
    bounds.
    """
    if dtype == torch.float16:
        return False
    bound = 2.0 ** (math.log2(torch.finfo(dtype).max) / 8)
    sizes = factors.double().abs()
    return bool(((sizes <= bound) & (sizes >= 1 / bound)).all())


def _is_close(narrow: torch.Tensor, wide: torch.Tensor, side: int, roundoff: float) -> bool:
    """Whether every slice along an axis is within this of its norm."""
    others = [d for d in range(wide.dim()) if d != side]
    error, size = ((v * v).sum(others) for v in (narrow - wide, wide))
    return bool((error <= roundoff**2 * size).all())
