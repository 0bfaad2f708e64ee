"""How far two models' outputs lie apart, over many batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from normfuse.errors import InputError

__all__ = ["Distance"]


class Distance:
    """Sums of squares of differences, in float64.

    Entries that are not finite, such as logits that a mask forbids, are no difference where both outputs have
    the same, and an infinite one elsewhere.
    """

    def __init__(self) -> None:
        self.count, self.largest = 0, 0.0
        self._difference = self._size = 0.0

    def add(self, before: Any, after: Any) -> None:
        """Compare the floating tensors of two outputs.

        Raises:
            InputError: when there is none.
        """
        pairs = list(zip(_floating(before), _floating(after), strict=True))
        if not pairs:
            raise InputError("the model returns no floating-point tensor that could be compared")
        for one, other in pairs:
            difference, size = _compared(one.double(), other.double())
            self._difference += float(difference.square().sum())
            self._size += float(size.square().sum())
            self.largest = max(self.largest, float(difference.abs().max()) if difference.numel() else 0.0)
        self.count += 1

    @property
    def relative(self) -> float:
        """``|y' - y| / |y|``; infinite where ``y`` is zero and ``y'`` is not."""
        if self._size == 0:
            return 0.0 if self._difference == 0 else math.inf
        return math.sqrt(self._difference / self._size)


def _compared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute differences, and what they are relative to."""
    is_finite = one.isfinite() & other.isfinite()
    is_same = (one == other) | (one.isnan() & other.isnan())
    difference = torch.where(is_finite, (other - one).abs(), math.inf)
    return difference.masked_fill(is_same, 0.0), one.masked_fill(~one.isfinite(), 0.0)


def _floating(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]
