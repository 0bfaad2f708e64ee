"""Whether one tensor is another one, rounded."""

from __future__ import annotations

import torch

__all__ = ["equals_to_rounding"]


def equals_to_rounding(value: torch.Tensor, exact: torch.Tensor, roundings: float = 1) -> bool:
    """Whether ``value`` is ``exact`` but for so many roundings to its dtype.

        |v - e| <= (roundings * u + 4 * u64) * |e|

    as lengths, for every slice along each of the first two axes: what reads a weight may be large where the
    weight is small. Vectors are compared as a whole. ``exact`` is in float64, was rounded on its way there,
    and has the same shape; what is not finite is equal to nothing.
    """
    bound = ((roundings * torch.finfo(value.dtype).eps + 4 * torch.finfo(torch.float64).eps) / 2) ** 2
    errors, sizes = (value.double() - exact) ** 2, exact**2
    if value.dim() < 2:
        return bool(errors.sum() <= bound * sizes.sum())
    others = ([d for d in range(value.dim()) if d != axis] for axis in (0, 1))
    return all(bool((errors.sum(rest) <= bound * sizes.sum(rest)).all()) for rest in others)
