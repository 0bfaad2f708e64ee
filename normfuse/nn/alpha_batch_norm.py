"""Alpha-BN: in evaluation, batch norm by a mixture of stored statistics and those of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.nn.affine import add_affine, per_channel
from normfuse.nn.from_batch_norm import copy_statistics, described
from normfuse.nn.inputs import check_channels, check_several
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.precision import cast, widened
from normfuse.nn.running import WithStatistics, batch_norm

__all__ = ["AlphaBatchNorm"]


class AlphaBatchNorm(WithStatistics):
    """``y = weight (x - mean) / sqrt(var + eps) + bias``, in evaluation by mixed statistics.

    From "Test-time Batch Statistics Calibration for Covariate Shift" (You et al. 2021, arXiv 2110.04065,
    section 3)::

        mean = alpha running_mean + (1 - alpha) batch mean
        var  = alpha running_var  + (1 - alpha) batch var

    with the population's variance of the batch. ``alpha`` is the weight of the *stored* statistics; code in
    circulation often has it the other way round, and then takes the sample's variance. With ``alpha=1``
    evaluation is that of a batch norm. Training is that of a batch norm with any alpha.

    Evaluation changes no buffer. The layer is no subclass of PyTorch's batch norms, whose tools would
    replace it by what has no alpha; its state dict is the same. Statistics in training behave as a batch
    norm's: checkpointed activations move them twice, ``torch.func`` transforms need them among the
    functional arguments, DDP broadcasts those of rank 0. A layer that was never trained stores zero and one.

    Shape: ``(N, C, ...)`` of two to five axes, to the same. Statistics are taken in float32 for half
    precision, and the result has the dtype of the input.

    Args:
        num_features: C.
        eps: inside of the root.
        momentum: the weight of the newest batch in the stored statistics.
        affine: whether there are ``weight`` and ``bias``.
        alpha: from 0, the batch alone, to 1.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for another number of channels or axes, and where the batch is asked for a
            variance and has one value in each channel.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        alpha: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        self.affine, self.alpha = affine, check_share(self, "alpha", alpha)
        add_affine(self, affine, num_features, device=device, dtype=dtype)
        self.add_statistic("running_mean", 0.0, num_features, device=device, dtype=dtype)
        self.add_statistic("running_var", 1.0, num_features, device=device, dtype=dtype)
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm, alpha: float = 0.9) -> AlphaBatchNorm:
        """A layer with copies of the parameters and statistics of a trained batch norm.

        Raises:
            InputError: where it stores no statistics.
        """
        size, eps, momentum, device, dtype = described(norm)
        made = cls(size, eps, momentum, norm.affine, alpha=alpha, device=device, dtype=dtype)
        copy_statistics(norm, made)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features)
        if self.training or self.alpha < 1:
            check_several(self, x.numel() // self.num_features, "channel")
        if self.training:
            self.num_batches_tracked.add_(1)
        if self.training or self.alpha == 1:
            return batch_norm(self, x, self.training)
        return self._calibrated(x)

    def _calibrated(self, x: Tensor) -> Tensor:
        z = widened(x)
        batch_var, batch_mean = torch.var_mean(z, [0, *range(2, x.dim())], correction=0)
        mean = self.alpha * widened(self.running_mean) + (1 - self.alpha) * batch_mean
        var = self.alpha * widened(self.running_var) + (1 - self.alpha) * batch_var
        y = (z - per_channel(mean, x)) * per_channel(torch.rsqrt(var + self.eps), x)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x) + per_channel(self.bias, x)
        return cast(y, x.dtype)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "momentum", "affine", "alpha")
