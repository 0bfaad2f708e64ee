"""Batch norm by running estimates in training as well, for batches too small to normalize themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.nn.affine import add_affine, per_channel
from normfuse.nn.inputs import check_channels, check_several
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.precision import cast, widened
from normfuse.nn.recomputing import kept, refuse_second_run
from normfuse.nn.running import WithStatistics, batch_norm, follow

__all__ = ["EstimatedBatchNorm"]


class EstimatedBatchNorm(WithStatistics):
    """``y = weight (x - running_mean) / sqrt(running_var + eps) + bias``, in training and in evaluation.

    From "Rethinking Normalization and Elimination Singularity in Neural Networks" (Qiao et al. 2019, arXiv
    1911.09738, micro-batch BCN). In training the estimates are first moved towards the
    moments of the batch, ``running += momentum (batch - running)``, both variances the population's, and no
    gradient flows through them. They start at zero and one, with which a layer that was never trained
    evaluates.

    A second run over a batch would give another output, so activation checkpointing of this layer raises an
    error. The estimates are in float32 at least, and otherwise behave as a batch norm's.

    Args and errors: as in :class:`normfuse.nn.BatchChannelNorm`.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        add_affine(self, True, num_features, device=device, dtype=dtype)
        self.add_statistic("running_mean", 0.0, num_features, device=device, dtype=dtype)
        self.add_statistic("running_var", 1.0, num_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features)
        if not self.training:
            return batch_norm(self, x, training=False)
        refuse_second_run(self)
        self._estimate(x)
        # Not batch_norm, which saves the buffers for its backward: a later step may move them before that.
        mean, variance = map(widened, kept(self, self.running_mean, self.running_var))
        z = (widened(x) - per_channel(mean, x)) * per_channel(torch.rsqrt(variance + self.eps), x)
        return cast(z * per_channel(self.weight, x) + per_channel(self.bias, x), x.dtype)

    @torch.no_grad()
    def _estimate(self, x: Tensor) -> None:
        check_several(self, x.numel() // self.num_features, "channel")
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(widened(x), axes, correction=0)
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            follow(running, new, self.momentum)
        self.warn_in_step()

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "momentum")
