"""Values that the backward pass sees as the forward pass did, although the buffers they come from move on.

A compiler may compute in the backward pass again what it did not save, and PyTorch's min-cut partitioner does
so from buffers that the forward pass has overwritten by then (pytorch/pytorch#197039, seen with 2.13): the
gradient is wrong, without a word. It never computes a concatenation again, so what goes through one is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["saved_together"]


def saved_together(*values: Tensor) -> tuple[Tensor, ...]:
    """The same values in the dtype and shape of the first one, as one small tensor that is saved."""
    first = values[0]
    rows = [value.to(first.dtype).expand_as(first) for value in values]
    return torch.stack(rows).unbind(0)
