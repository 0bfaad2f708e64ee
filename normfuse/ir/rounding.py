"""Whether one tensor is another one, rounded."""

from __future__ import annotations

import torch

__all__ = ["equals_to_rounding"]


def equals_to_rounding(value: torch.Tensor, exact: torch.Tensor, roundings: float = 1) -> bool:
    """Whether ``value`` is ``exact`` but for so many roundings to its dtype.

        |v - e| <= (roundings * u + 4 * u64) * |e|      for every slice along one of the first two axes, as lengths,

    where a slice along the other axis may differ by as much as an average one of them would: where columns
    lose their means, a small row takes over the roundings of the others. Vectors are compared as a whole.
    ``exact`` is in float64, was rounded on its way there, and has the same shape; what is not finite is equal
    to nothing.
    """
    bound = ((roundings * torch.finfo(value.dtype).eps + 4 * torch.finfo(torch.float64).eps) / 2) ** 2
    errors, sizes = (value.double() - exact) ** 2, exact**2
    if value.dim() < 2:
        return bool(errors.sum() <= bound * sizes.sum())
    judged = [_judge(errors, sizes, axis, bound) for axis in (0, 1)]
    return any(every for every, _ in judged) and all(average for _, average in judged)


def _judge(errors: torch.Tensor, sizes: torch.Tensor, axis: int, bound: float) -> tuple[bool, bool]:
    """Whether each slice along an axis is within its bound, and whether within that of itself or an average."""
    others = [d for d in range(errors.dim()) if d != axis]
    error, size = errors.sum(others), sizes.sum(others)
    every = bool((error <= bound * size).all())
    return every, every or bool((error <= bound * size.clamp_min(float(size.mean()))).all())
