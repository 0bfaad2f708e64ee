"""LayerNorm Scaling: the output of a LayerNorm over the root of the depth that it stands at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normfuse.nn.inputs import check_last
from normfuse.nn.options import check_count, check_eps, listed

__all__ = ["ScaledLayerNorm"]


class ScaledLayerNorm(nn.LayerNorm):
    """``y = LayerNorm(x) / sqrt(layer)``.

    From "The Curse of Depth in Large Language Models" (Sun et al. 2025, arXiv 2502.05795, section 4). The
    paper has it in place of both norms of each block, and a plain norm behind the last one. Training and
    evaluation compute the same. For other norms see :class:`normfuse.nn.DepthScaledNorm`.

    Shape: ``(..., d)`` to the same, in the dtype that ``nn.LayerNorm`` returns.

    Args:
        normalized_shape: ``d``, the size of the last axis.
        layer: the number of the block, counted from one.
        eps, elementwise_affine, bias, device, dtype: as in ``nn.LayerNorm``.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for a last axis of another size or values that are not floating-point.
    """

    def __init__(
        self,
        normalized_shape: int,
        layer: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count(self, "normalized_shape", normalized_shape)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        check_eps(self, eps)
        self.layer = check_count(self, "layer", layer)

    def forward(self, x: Tensor) -> Tensor:
        check_last(self, x, self.normalized_shape[0])
        return super().forward(x) * (1.0 / math.sqrt(self.layer))

    def extra_repr(self) -> str:
        return listed(self, "normalized_shape", "layer", "eps", "elementwise_affine")
