"""Running statistics: the buffers of a batch norm, and how they follow the batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfuse.nn.precision import widened

__all__ = ["add_running_moments", "follow"]


def add_running_moments(layer: nn.Module, num_features: int, **made: Any) -> None:
    """Give the layer a ``running_mean`` of zeros and a ``running_var`` of ones."""
    layer.register_buffer("running_mean", torch.zeros(num_features, **made))
    layer.register_buffer("running_var", torch.ones(num_features, **made))


@torch.no_grad()
def follow(running: Tensor, new: Tensor, share: float) -> None:
    """``running = (1 - share) running + share new``."""
    running.copy_((1 - share) * widened(running) + share * new)
