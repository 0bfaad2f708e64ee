"""What test-time layers take over from a batch norm that was trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.errors import InputError

__all__ = ["copy_statistics", "described"]


def described(norm: _BatchNorm) -> tuple[int, float, float, torch.device, torch.dtype]:
    """Its size, eps, momentum, device and dtype.

    Raises:
        InputError: where it stores no statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(
            f"{type(norm).__name__} stores no statistics to begin with; it needs track_running_stats=True"
        )
    momentum = 0.1 if norm.momentum is None else norm.momentum
    return norm.num_features, norm.eps, momentum, norm.running_mean.device, norm.running_mean.dtype


@torch.no_grad()
def copy_statistics(norm: _BatchNorm, made: nn.Module) -> None:
    """Copy every parameter and buffer of the batch norm that the new layer has under the same name."""
    own = made.state_dict()
    for name, value in norm.state_dict().items():
        if name in own:
            own[name].copy_(value)
