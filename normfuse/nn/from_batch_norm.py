"""What test-time layers take over from a batch norm that was trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.errors import InputError
from normfuse.nn.batch_norm import BatchNorm

__all__ = ["copy_statistics", "described"]


def described(norm: _BatchNorm) -> tuple[int, float, float, torch.device, torch.dtype]:
    """Its size, eps, momentum, device and dtype.

    Raises:
        InputError: where it is another module, stores no statistics or averages all batches.
    """
    _check_channels_on_axis_1(norm)
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(
            f"{type(norm).__name__} stores no statistics to begin with; it needs track_running_stats=True"
        )
    if norm.momentum is None:
        raise InputError(
            f"{type(norm).__name__} averages all batches, with momentum=None, which this layer does not do; "
            "set its momentum to a number"
        )
    return norm.num_features, norm.eps, norm.momentum, norm.running_mean.device, norm.running_mean.dtype


@torch.no_grad()
def copy_statistics(norm: _BatchNorm, made: nn.Module) -> None:
    """Copy every parameter and buffer of the batch norm that the new layer has under the same name."""
    own = made.state_dict()
    for name, value in norm.state_dict().items():
        if name in own:
            own[name].copy_(value)


def _check_channels_on_axis_1(norm: nn.Module) -> None:
    if not isinstance(norm, _BatchNorm) or isinstance(norm, BatchNorm):
        name = type(norm).__name__
        raise InputError(f"from_batch_norm takes a batch norm of torch.nn, channels on axis 1, not {name}")
