"""Batch-Channel Normalization: a batch norm, and a norm of groups of channels behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.nn.affine import add_affine
from normfuse.nn.estimated_batch_norm import EstimatedBatchNorm
from normfuse.nn.inputs import check_channels, check_several
from normfuse.nn.options import check_count, check_eps, check_groups, check_share, listed
from normfuse.nn.plain_batch_norm import PlainBatchNorm

__all__ = ["BatchChannelNorm"]


class BatchChannelNorm(nn.Module):
    """``y = weight_g GN(BN(x)) + bias_g``, with one weight and one bias for each group g of channels.

    From "Rethinking Normalization and Elimination Singularity in Neural Networks" (Qiao et al. 2019, arXiv
    1911.09738, Batch-Channel Normalization). GN normalizes each group of channels of each sample by its own
    mean and variance; BN is ``nn.BatchNorm2d``, or with ``estimate=True`` the paper's for micro-batches,
    :class:`normfuse.nn.EstimatedBatchNorm`.

    In evaluation BN uses its running statistics and is one scale and shift for each channel; GN goes on
    taking its own. A layer that was never trained evaluates with the statistics zero and one.

    The running statistics are in float32 at least and behave as a batch norm's: checkpointed activations
    move them twice (and raise an error with ``estimate=True``), ``torch.func`` transforms need them among the
    functional arguments, DDP broadcasts those of rank 0.

    Shape: ``(N, C, H, W)`` to the same. Half precision is normalized with statistics in float32.

    Args:
        num_features: C.
        num_groups: of channels; C is a multiple of it.
        eps: inside of both roots.
        momentum: the weight of the newest batch in the running statistics.
        estimate: normalize by running statistics in training, too.

    Raises:
        OptionError: from the constructor, for an option that is out of range, or groups that do not divide C.
        InputError: from the call, for another number of channels or axes, and for one value in each
            channel (in training) or group, which has no variance.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        estimate: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.num_groups = check_groups(self, num_groups, num_features)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        self.estimate = estimate
        make = EstimatedBatchNorm if estimate else PlainBatchNorm
        self.batch_norm = make(num_features, eps, momentum, device=device, dtype=dtype)
        add_affine(self, True, num_groups, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features, range(4, 5))
        size = self.num_features // self.num_groups
        check_several(self, size * x.shape[2] * x.shape[3], "group")
        if self.training:
            check_several(self, x.numel() // self.num_features, "channel")
        weight, bias = (p.repeat_interleave(size) for p in (self.weight, self.bias))
        return F.group_norm(self.batch_norm(x), self.num_groups, weight, bias, self.eps)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "num_groups", "eps", "momentum", "estimate")
