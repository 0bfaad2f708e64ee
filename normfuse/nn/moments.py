"""Moments over the tokens of a batch, leaving out padding.

mean_square = sum_valid(x^2) / n,        n = number of valid tokens
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Tokens", "sum_of_tokens"]


class Tokens:
    """Which tokens of a batch count, and how many they are.

    Attributes:
        valid: (..., 1), None where all do.
        count: at least one, so that an empty batch divides nothing by zero.
        is_empty: whether no token counts; None where that cannot be.
    """

    def __init__(self, x: Tensor, pad_mask: Tensor | None) -> None:
        self.valid = None if pad_mask is None else ~pad_mask.unsqueeze(-1)
        number = x.numel() // x.shape[-1]
        self.count: Tensor | int = number if number > 0 else 1
        self.is_empty: Tensor | None = None
        if self.valid is not None:
            counted = self.valid.sum()
            self.count, self.is_empty = counted.clamp(min=1), counted == 0
        elif number == 0:
            self.is_empty = torch.ones((), dtype=torch.bool, device=x.device)

    def keep(self, x: Tensor) -> Tensor:
        """``x`` with zeros at padding, where it may hold anything, nan as well."""
        return x if self.valid is None else torch.where(self.valid, x, 0)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each channel over the valid tokens; zero where there is none."""
        return sum_of_tokens(self.keep(x)) / self.count

    def mean_square(self, x: Tensor) -> Tensor:
        """Mean square of each channel over the valid tokens; zero where there is none.

        What the dtype cannot hold counts as half of the largest number that it holds, so that no quotient
        or difference of such statistics is nan.
        """
        return (sum_of_tokens(self.keep(x).square()) / self.count).clamp(max=torch.finfo(x.dtype).max / 2)

    def unless_empty(self, value: Tensor, otherwise: Tensor) -> Tensor:
        """``value``, and ``otherwise`` where no token counts."""
        return value if self.is_empty is None else torch.where(self.is_empty, otherwise, value)


def sum_of_tokens(x: Tensor) -> Tensor:
    """Sum over all axes but the last."""
    return x.sum(tuple(range(x.dim() - 1)))
