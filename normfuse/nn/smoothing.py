"""Statistics of unified normalization: a geometric mean over the last batches, and batches that are left out.

x2_t   = mean square of batch t, one per channel
V      = variance of sqrt(window), over all its entries, before x2_t enters
AM, GM = arithmetic and geometric mean of the window with x2_t, per channel
skip   = some channel has AM - GM > M V               (Kober's inequality bounds it for calm windows)
s2_t   = GM;  x2_t in warm-up, while the window fills, and on skip
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Smoothed", "clip_ratio", "is_instant", "put", "smooth"]

#: The ratio of statistics corrects gradients from this iteration on, however short the warm-up.
_SETTLED = 1000
#: The ratio lies between one fifth and five.
_LARGEST_RATIO = 5.0


@dataclass(frozen=True)
class Smoothed:
    """What one training batch is normalized by.

    Attributes:
        mean_square: (C,), ``s2_t``.
        window: (M, C), with the entry of this batch; that of a skipped one is the running statistic.
        skip: (), whether the batch counts as an outlier, or the window has one place.
        is_outlier: (), whether the filtration found one.
    """

    mean_square: Tensor
    window: Tensor
    skip: Tensor
    is_outlier: Tensor


def smooth(
    x2: Tensor, window: Tensor, running: Tensor, iteration: Tensor, warmup_iters: int, filters: bool
) -> Smoothed:
    """The statistics of batch number ``iteration``, counted from one, with mean square ``x2``."""
    size = window.shape[0]
    place = iteration % size
    entered = put(window, place, x2)
    never = torch.zeros_like(iteration, dtype=torch.bool)
    if size == 1:
        return Smoothed(x2, entered, ~never, never)
    # log of an empty place is -inf and its mean zero, which the first branch leaves out
    geometric = entered.log().mean(0).exp()
    is_warm = ~is_instant(iteration, size, warmup_iters)
    is_outlier = is_warm & _stands_out(window, entered, geometric) if filters else never
    mean_square = torch.where(is_warm & ~is_outlier, geometric, x2)
    stored = torch.where(is_outlier, put(window, place, running), entered)
    return Smoothed(mean_square, stored, is_outlier, is_outlier)


def put(window: Tensor, place: Tensor, value: Tensor) -> Tensor:
    """The window (M, C) with ``value`` in one place."""
    places = torch.arange(window.shape[0], device=window.device).unsqueeze(-1)
    return torch.where(places == place, value, window)


def is_instant(iteration: Tensor, size: int, warmup_iters: int) -> Tensor:
    """Whether the statistic of the batch itself counts: in warm-up, and while a window of ``size`` fills."""
    return (iteration <= size) | (iteration < warmup_iters)


def clip_ratio(
    mean_square: Tensor, running: Tensor, eps: float, iteration: Tensor, warmup_iters: int, skip: Tensor
) -> Tensor:
    """``sqrt((s2 + eps) / (running + eps))`` within its limits; one while statistics settle, and on skip."""
    ratio = ((mean_square + eps) / (running + eps)).sqrt().clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO)
    is_one = (iteration <= max(_SETTLED, warmup_iters)) | skip
    return torch.where(is_one, torch.ones_like(ratio), ratio)


def _stands_out(window: Tensor, entered: Tensor, geometric: Tensor) -> Tensor:
    spread = window.sqrt().var(correction=1)
    return (entered.mean(0) - geometric > window.shape[0] * spread).any()
