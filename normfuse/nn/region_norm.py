"""Region normalization: what a mask marks and what it does not are normalized separately."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.errors import InputError
from normfuse.nn.affine import add_affine, per_channel
from normfuse.nn.inputs import check_channels, check_tensor
from normfuse.nn.options import check_count, check_eps, listed
from normfuse.nn.precision import cast, widened

__all__ = ["RegionNorm"]


class RegionNorm(nn.Module):
    """``y = weight_k (x - mean_k) / sqrt(var_k + eps) + bias_k`` in each of the two regions k of a mask.

    From "Region Normalization for Image Inpainting" (Yu et al. 2020, arXiv 1911.10375, section 3, RN-B, the
    basic form). Mean and variance (the population's) are taken in one region of one channel of one sample;
    with ``over_batch=True``, as in the authors' released code, in that region of all samples. Training and
    evaluation compute the same, statistics of the call.

    An entry of the mask that is not zero belongs to region 1, the others to region 0. A region without
    pixels has no part in the result, and one of a single pixel gives its bias there. What a region holds,
    infinities for example, never reaches the other one, and each bias is added in its own region only (the
    released code adds both everywhere).

    Shape: ``(N, C, H, W)`` and a mask of ``(N, 1, H, W)`` of any dtype, to the shape of the first. A mask of
    another size is brought to that of x by ``F.interpolate(mask, x.shape[2:], mode="nearest")``. Statistics
    are taken in float32 for half precision, and the result has the dtype of the input.

    Args:
        num_features: C.
        eps: inside of the roots.
        over_batch: statistics of a region of all samples together.

    ``weight`` and ``bias`` have the shape ``(2, C)``, region 0 first.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for another number of channels or axes, or a mask of another shape.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        over_batch: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps = check_eps(self, eps)
        self.over_batch = over_batch
        add_affine(self, True, 2, num_features, device=device, dtype=dtype)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        check_channels(self, x, self.num_features, range(4, 5))
        check_tensor(self, "mask", mask)
        wanted = (x.shape[0], 1, *x.shape[2:])
        if tuple(mask.shape) != wanted:
            raise InputError(
                f"RegionNorm takes a mask of {wanted} for an input of {tuple(x.shape)}, not "
                f"{tuple(mask.shape)}; F.interpolate(mask, x.shape[2:], mode='nearest') resizes it"
            )
        marked, z = mask != 0, widened(x)
        weight, bias = widened(self.weight), widened(self.bias)
        in_0 = self._region(z, ~marked) * per_channel(weight[0], x) + per_channel(bias[0], x)
        in_1 = self._region(z, marked) * per_channel(weight[1], x) + per_channel(bias[1], x)
        return cast(torch.where(marked, in_1, in_0), x.dtype)

    def _region(self, z: Tensor, inside: Tensor) -> Tensor:
        """The values of one region, normalized by it, and zeros elsewhere."""
        axes = [0, 2, 3] if self.over_batch else [2, 3]
        count = inside.sum(axes, keepdim=True).clamp_min(1)
        mean = torch.where(inside, z, 0.0).sum(axes, keepdim=True) / count
        centred = torch.where(inside, z - mean, 0.0)
        variance = (centred * centred).sum(axes, keepdim=True) / count
        return centred * torch.rsqrt(variance + self.eps)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "over_batch")
