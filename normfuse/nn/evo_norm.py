"""EvoNorms: layers that normalize and bend values at once, found by search."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.nn.affine import add_affine, per_channel
from normfuse.nn.inputs import check_channels, check_several
from normfuse.nn.options import check_count, check_eps, check_groups, check_share, listed
from normfuse.nn.precision import cast, widened
from normfuse.nn.running import WithStatistics, follow

__all__ = ["EvoNormB0", "EvoNormS0"]

_SPATIAL = range(3, 6)


class _EvoNorm(WithStatistics):
    """What both have: ``weight``, ``bias`` and ``v``, one entry for each channel."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps = check_eps(self, eps)
        add_affine(self, True, num_features, device=device, dtype=dtype)
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def _affine(self, z: Tensor, x: Tensor) -> Tensor:
        return cast(z * per_channel(self.weight, x) + per_channel(self.bias, x), x.dtype)


class EvoNormB0(_EvoNorm):
    """``y = weight x / max(sqrt(batch var + eps), v x + sqrt(instance var + eps)) + bias``.

    From "Evolving Normalization-Activation Layers" (Liu et al. 2020, arXiv 2004.02967, table 2). No
    activation follows it. Both variances are the population's; that of the batch is taken over all but the
    channels, that of the instance over the axes of space.

    In evaluation ``running_var`` stands for the variance of the batch, and the instance's is taken as in
    training. It starts at one, with which a layer that was never trained evaluates, and behaves as a batch
    norm's: checkpointed activations move it twice, ``torch.func`` transforms need it among the functional
    arguments, DDP broadcasts that of rank 0.

    Shape: ``(N, C, ...)`` with one to three axes of space, to the same. Statistics are taken in float32 for
    half precision, and the result has the dtype of the input.

    Args:
        num_features: C.
        eps: inside of both roots.
        momentum: the weight of the newest batch in ``running_var``.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for another number of channels or axes; in training for one value in each
            channel, which has no variance. One pixel in each channel has the variance zero.
    """

    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, device, dtype)
        self.momentum = check_share(self, "momentum", momentum)
        self.add_statistic("running_var", 1.0, num_features, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features, _SPATIAL)
        if x.shape[0] == 0 and not self.training:
            return x.clone()
        z = widened(x)
        batch = per_channel(torch.sqrt(self._batch_variance(z) + self.eps), x)
        space = list(range(2, x.dim()))
        instance = torch.sqrt(torch.var(z, space, correction=0, keepdim=True) + self.eps)
        return self._affine(z / torch.maximum(batch, per_channel(self.v, x) * z + instance), x)

    def _batch_variance(self, z: Tensor) -> Tensor:
        if not self.training:
            return widened(self.running_var)
        check_several(self, z.numel() // self.num_features, "channel")
        variance = torch.var(z, [0, *range(2, z.dim())], correction=0)
        follow(self.running_var, variance, self.momentum)
        self.warn_in_step()
        return variance

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "momentum")


class EvoNormS0(_EvoNorm):
    """``y = weight x sigmoid(v x) / sqrt(group var + eps) + bias``.

    From "Evolving Normalization-Activation Layers" (Liu et al. 2020, arXiv 2004.02967, table 2). No
    activation follows it. The variance is the population's, of a group of channels of one sample, and no
    mean is taken off the values. Training and evaluation compute the same.

    Shape: ``(N, C, ...)`` with one to three axes of space, to the same. Statistics are taken in float32 for
    half precision, and the result has the dtype of the input.

    Args:
        num_features: C.
        num_groups: of channels; C is a multiple of it.
        eps: inside of the root.

    Raises:
        OptionError: from the constructor, for an option that is out of range, or groups that do not divide C.
        InputError: from the call, for another number of channels or axes, and for one value in each group,
            which has no variance.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, device, dtype)
        self.num_groups = check_groups(self, num_groups, num_features)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features, _SPATIAL)
        size = self.num_features // self.num_groups
        check_several(self, size * x.shape[2:].numel(), "group")
        if x.shape[0] == 0:
            return x.clone()
        z = widened(x)
        groups = z.unflatten(1, (self.num_groups, size))
        variance = torch.var(groups, list(range(2, groups.dim())), correction=0, keepdim=True)
        deviation = torch.sqrt(variance + self.eps)
        gated = (z * torch.sigmoid(per_channel(self.v, x) * z)).unflatten(1, (self.num_groups, size))
        return self._affine((gated / deviation).flatten(1, 2), x)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "num_groups", "eps")
