"""CRMSNorm: the RMSNorm of a vector without a mean that is stored without its last coordinate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.nn.inputs import check_last
from normfuse.nn.options import check_count, check_eps, listed
from normfuse.nn.precision import cast, widened

__all__ = ["CRMSNorm"]


class CRMSNorm(nn.Module):
    """``y = z / sqrt((sum(z^2) + (sum z)^2) / d + eps)`` over the last axis, of size ``d - 1``.

    From "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers" (Jiang et
    al. 2023, arXiv 2305.14858, section 3.3). The coordinate that is left out is ``-sum(z)``, and ``d`` counts
    it. Training and evaluation compute the same.

    Shape: ``(..., d - 1)`` to the same. Statistics are taken in float32 for half precision, and the result
    has the dtype of the input.

    Args:
        normalized_shape: the size of the last axis, ``d - 1``.
        eps: inside of the root.
        elementwise_affine: multiply by a ``weight``; the paper has none, since what reads the norm has it.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for a last axis of another size or values that are not floating-point.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = check_count(self, "normalized_shape", normalized_shape)
        self.eps, self.elementwise_affine = check_eps(self, eps), elementwise_affine
        weight = torch.ones(normalized_shape, device=device, dtype=dtype) if elementwise_affine else None
        self.register_parameter("weight", None if weight is None else nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        check_last(self, x, self.normalized_shape)
        z = widened(x)
        total = z.sum(-1, keepdim=True)
        mean_square = ((z * z).sum(-1, keepdim=True) + total * total) / (self.normalized_shape + 1)
        y = z * torch.rsqrt(mean_square + self.eps)
        return cast(y if self.weight is None else y * self.weight, x.dtype)

    def extra_repr(self) -> str:
        return listed(self, "normalized_shape", "eps", "elementwise_affine")
