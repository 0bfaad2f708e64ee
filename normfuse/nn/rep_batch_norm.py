"""Re-parameterized batch normalization (arXiv 2405.11582)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.nn.affine import scale_and_shift
from normfuse.nn.batch_norm import BatchNorm
from normfuse.nn.inputs import check_several, check_tokens
from normfuse.nn.options import check_count, check_eps, check_number, check_share
from normfuse.nn.precision import cast, wide_dtype

__all__ = ["RepBatchNorm"]


class RepBatchNorm(nn.Module):
    r"""Batch norm plus a trained share of its input.

        y = BatchNorm(x) + alpha * x

    RepBN of "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized
    Batch Normalization", arXiv 2405.11582, section 3.2. In evaluation it is one scale and one shift per
    channel:

        y = (weight / sqrt(running_var + eps) + alpha) * x + bias - running_mean * weight / sqrt(running_var +
        eps)

    Args:
        num_features: channels C.
        eps, momentum, affine: of the batch norm ``bn``, see :class:`normfuse.nn.BatchNorm`.
        alpha: the first value of ``alpha``, a parameter of shape (1,). The paper starts with one for images;
            its code for language models starts with zero and also sets weight and bias of ``bn`` to zero.

    Shape:
        x: (..., C), also (B, C); the output has its shape and dtype.
        pad_mask: (...), bool, True at padding, which is normalized like everything else, in training and in
            evaluation, but takes no part in the statistics.

    Parameters and buffers have the names of the paper's code, whose checkpoints load. As with nn.BatchNorm,
    activation checkpointing moves the running statistics twice for each batch, and torch.func transforms
    raise an error in training.

    Raises:
        OptionError, InputError: as :class:`normfuse.nn.BatchNorm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        alpha: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        check_eps(self, eps)
        check_share(self, "momentum", momentum)
        self.bn = BatchNorm(num_features, eps, momentum, affine, device, dtype)
        start = check_number(self, "alpha", alpha)
        self.alpha = nn.Parameter(torch.full((1,), start, device=device, dtype=dtype))

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalize ``x``; ``pad_mask`` matters in training only."""
        check_tokens(self, x, pad_mask, self.num_features)
        dtype = wide_dtype(x)
        alpha = cast(self.alpha, dtype)
        if self.training:
            check_several(self, x.numel() // self.num_features, "channel")
            return cast(self.bn(x, pad_mask) + alpha * x, x.dtype)
        scale, shift = self.bn.scale_and_shift(dtype)
        return scale_and_shift(x, scale + alpha, shift)

    def set_statistics(self, mean: Tensor, mean_square: Tensor) -> None:
        """Take over statistics of inputs, (C,) each, for evaluation."""
        self.bn.set_statistics(mean, mean_square)
