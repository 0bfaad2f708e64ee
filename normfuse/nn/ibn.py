"""IBN: instance norm for some channels, batch norm for the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.errors import OptionError
from normfuse.nn.inputs import check_channels, check_several
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.plain_batch_norm import PlainBatchNorm

__all__ = ["IBN"]


class IBN(nn.Module):
    """``y = [IN(x[:, :h]), BN(x[:, h:])]`` with ``h = floor(ratio C)``.

    From "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net" (Pan et al. 2018, arXiv
    1807.09441, section 3, IBN-a: in place of the first batch norm of a residual block). Both have a weight
    and a bias. Where C is odd, the batch norm has one channel more.

    In evaluation BN uses its running statistics and is one scale and shift for each channel; IN goes on
    taking its own. BN's statistics behave as those of ``nn.BatchNorm2d``, which it is.

    Shape: ``(N, C, H, W)`` to the same.

    Args:
        num_features: C.
        eps, momentum: of both norms, and of BN.
        ratio: of the channels that IN normalizes, more than zero and less than one.

    Raises:
        OptionError: from the constructor, for an option that is out of range, and where one of the norms
            would have no channels.
        InputError: from the call, for another number of channels or axes, and for one value in each channel
            (in training) or one pixel, which have no variance.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        ratio: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        self.ratio = check_share(self, "ratio", ratio)
        half = int(num_features * ratio)
        if not 0 < half < num_features:
            raise OptionError(
                f"IBN: a ratio of {ratio!r} of {num_features} channels leaves one of its norms without any"
            )
        self.split = [half, num_features - half]
        self.instance_norm = nn.InstanceNorm2d(half, eps, affine=True, device=device, dtype=dtype)
        self.batch_norm = PlainBatchNorm(self.split[1], eps, momentum, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features, range(4, 5))
        check_several(self, x.shape[2] * x.shape[3], "channel of a sample")
        if x.shape[0] == 0 and not self.training:
            return x.clone()
        if self.training:
            check_several(self, x.numel() // self.num_features, "channel")
        first, second = torch.split(x, self.split, dim=1)
        return torch.cat([self.instance_norm(first), self.batch_norm(second)], dim=1)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "momentum", "ratio")
