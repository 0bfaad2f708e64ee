"""How many errors of their own a value holds.

Every pixel of a constant image has nearly the same error, so that a thousand of them are no more of a sample
than one. Numbers that agree to half of their digits are a group, and the original's error in it is the mean
of the group and a rest. With n_g for the size of a group and m_g for its mean, the squares that add up to the
whole error are n_g m_g^2, one each, and those of the rests, and

    count = 3 (sum of the squares)^2 / (sum of the squares of the squares) - 2

is how many normal errors of one size would scatter as much (Satterthwaite 1946, whose estimate from single
squares is a third too small since the fourth moment of a normal number is 3). Numbers that are in one group
by chance have errors that cancel in the mean, so the count hardly feels them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FEWEST", "independent_errors"]

FEWEST = 8
"""What many numbers count for at least: an error that is one outlier is no licence for any other."""


def independent_errors(reference: Tensor, oracle: Tensor, eps: float) -> int:
    """From ``FEWEST`` up to the number of numbers of two wide vectors; ``eps`` is of the original's dtype."""
    error = reference - oracle
    peak = error.abs().max() if error.numel() else torch.zeros(())
    if not error.numel():
        return 1
    _, group, sizes = _cells(oracle, eps**0.5).unique(return_inverse=True, return_counts=True)
    if not peak > 0:  # an original that happens to be exact
        alike = sizes.double()
        return min(max(FEWEST, round(float(alike.sum() ** 2 / alike.square().sum()))), error.numel())
    error = error / peak
    mean = torch.zeros(sizes.shape, dtype=error.dtype, device=error.device).index_add(0, group, error) / sizes
    squares = torch.cat([sizes * mean.square(), (error - mean[group]).square()])
    count = 3.0 * float(squares.sum() ** 2 / squares.square().sum()) - 2.0
    return min(max(FEWEST, round(count)), error.numel())


def _cells(values: Tensor, share: float) -> Tensor:
    """Of this share of the root mean square."""
    peak = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
    scaled = values / peak
    width = scaled.square().mean().sqrt().clamp_min(1e-30) * share
    return (scaled / width).round()
