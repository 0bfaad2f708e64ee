"""Alpha-BN: in evaluation, batch norm by a mixture of stored statistics and those of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.errors import OptionError
from normfuse.nn.from_batch_norm import copy_statistics, described
from normfuse.nn.layer_inputs import as_given, check_channels, check_several, per_channel, positive, widened

__all__ = ["AlphaBatchNorm"]


class AlphaBatchNorm(nn.Module):
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
        alpha: from 0, the batch alone, to 1.
        eps: inside of the root.
        momentum: the weight of the newest batch in the stored statistics.
        affine: whether there are ``weight`` and ``bias``.

    Raises:
        OptionError: from the constructor, for a count that is none or an alpha outside of its range.
        InputError: from the call, for another number of channels or axes, and where the batch is asked for a
            variance and has one value in each channel.
    """

    def __init__(
        self,
        num_features: int,
        alpha: float = 0.9,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = positive(self, "num_features", num_features)
        if not 0 <= alpha <= 1:
            raise OptionError(f"AlphaBatchNorm: alpha is from 0 to 1, not {alpha!r}")
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(ones) if affine else None
        self.bias = nn.Parameter(torch.zeros_like(ones)) if affine else None
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", torch.ones_like(ones))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    @classmethod
    def from_batch_norm(cls, norm: _BatchNorm, alpha: float = 0.9) -> AlphaBatchNorm:
        """A layer with copies of the parameters and statistics of a trained batch norm.

        Raises:
            InputError: where it stores no statistics.
        """
        size, eps, momentum, device, dtype = described(norm)
        made = cls(size, alpha, eps, momentum, norm.affine, device, dtype)
        copy_statistics(norm, made)
        return made.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features)
        if self.training or self.alpha < 1:
            check_several(self, x.numel() // self.num_features, "channel")
        if self.training:
            self.num_batches_tracked.add_(1)
        if self.training or self.alpha == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)
        return self._calibrated(x)

    def _calibrated(self, x: Tensor) -> Tensor:
        z = widened(x)
        batch_var, batch_mean = torch.var_mean(z, [0, *range(2, x.dim())], correction=0)
        mean = self.alpha * widened(self.running_mean) + (1 - self.alpha) * batch_mean
        var = self.alpha * widened(self.running_var) + (1 - self.alpha) * batch_var
        y = (z - per_channel(mean, x)) * per_channel(torch.rsqrt(var + self.eps), x)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x) + per_channel(self.bias, x)
        return as_given(y, x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, alpha={self.alpha}, eps={self.eps}, momentum={self.momentum}"
