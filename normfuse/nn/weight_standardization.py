"""Convolutions whose weight is standardized at every call: each output channel has mean 0 and variance 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from normfuse.errors import OptionError
from normfuse.nn.inputs import check_shape
from normfuse.nn.options import check_eps, check_number
from normfuse.nn.precision import cast, widened

__all__ = ["WeightStandardizedConv1d", "WeightStandardizedConv2d", "WeightStandardizedConv3d"]


class _WeightStandardized(_ConvNd):
    """A convolution with a weight V in the place of W, each over all but the output channels of W.

    Plain, from "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization" (Qiao et
    al. 2019, arXiv 1903.10520, section 3, equation 2)::

        V = (W - mean(W)) / sqrt(var(W) + eps)

    ``scaled=True``, from "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets" (Brock et al. 2021, arXiv 2101.08692, section 4), with the gain of "High-Performance Large-Scale
    Image Recognition Without Normalization" (Brock et al. 2021, arXiv 2102.06171)::

        V = gain gamma (W - mean(W)) / sqrt(max(n var(W), eps))

    where n is the number of weights of one output channel. The variance is the population's in both; code in
    circulation often has the sample's, or eps outside of the root. Constant weights give zeros.

    Training and evaluation compute the same. The weight is standardized in float32 for half precision.
    ``weight`` and ``bias`` are those of the ``nn`` convolution, whose state dict loads (``gain`` besides).

    Args:
        args, kwargs: those of the ``nn`` convolution.
        eps: 1e-5, and 1e-4 in the scaled form.
        scaled: the second equation, with a parameter ``gain`` of ones for each output channel.
        gamma: the gain of the nonlinearity in front, for example ``sqrt(2 / (1 - 1 / pi))`` for ReLU.

    Raises:
        OptionError: from the constructor, where an output channel has one weight, which has no variance,
            for an eps that is not positive, and for a gamma that is no number or without the scaled form.
        InputError: from the call, for another number of channels or axes.
    """

    def __init__(
        self, *args: Any, eps: float | None = None, scaled: bool = False, gamma: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eps = (1e-4 if scaled else 1e-5) if eps is None else eps
        self.gamma = check_number(self, "gamma", gamma)
        self.fan_in = math.prod(self.weight.shape[1:])
        self._check()
        if gamma != 1.0 and not scaled:
            raise OptionError(f"{type(self).__name__}: gamma goes with scaled=True")
        self.gain = nn.Parameter(self.weight.new_ones(self.out_channels)) if scaled else None

    def _check(self) -> None:
        if self.fan_in < 2:
            name = type(self).__name__
            raise OptionError(f"{name}: one weight for each output channel has no variance; use nn's layer")
        check_eps(self, self.eps)

    def standardized_weight(self) -> Tensor:
        """V, in the dtype of ``weight``."""
        weight = widened(self.weight)
        axes = tuple(range(1, weight.dim()))
        if self.gain is None:
            variance, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
            return cast((weight - mean) * torch.rsqrt(variance + self.eps), self.weight.dtype)
        centred = weight - weight.mean(axes, keepdim=True)
        # sqrt(max(n var, eps)) = max(|W - mean|, sqrt(eps))
        length = torch.linalg.vector_norm(centred, dim=axes, keepdim=True).clamp_min(math.sqrt(self.eps))
        gain = widened(self.gain).reshape(length.shape) * self.gamma
        return cast(centred / length * gain, self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rank = self.weight.dim()
        space = ("L", "H, W", "D, H, W")[rank - 3]
        fits = x.dim() in (rank - 1, rank) and x.shape[1 - rank] == self.in_channels
        check_shape(self, x, f"(N, {self.in_channels}, {space}) or of one sample of it", fits)
        result: Tensor = self._conv_forward(x, self.standardized_weight(), self.bias)
        return result

    def extra_repr(self) -> str:
        own = f"eps={self.eps}, scaled={self.gain is not None}, gamma={self.gamma}"
        return f"{super().extra_repr()}, {own}"  # type: ignore[no-untyped-call]


class WeightStandardizedConv1d(_WeightStandardized, nn.Conv1d):
    """``nn.Conv1d`` with a standardized weight: see :class:`_WeightStandardized`, its base, for all of it.

    ``V = (W - mean(W)) / sqrt(var(W) + eps)``, or with ``scaled=True``
    ``V = gain gamma (W - mean(W)) / sqrt(max(n var(W), eps))``.
    """


class WeightStandardizedConv2d(_WeightStandardized, nn.Conv2d):
    """``nn.Conv2d`` with a standardized weight: see :class:`_WeightStandardized`, its base, for all of it.

    ``V = (W - mean(W)) / sqrt(var(W) + eps)``, or with ``scaled=True``
    ``V = gain gamma (W - mean(W)) / sqrt(max(n var(W), eps))``.
    """


class WeightStandardizedConv3d(_WeightStandardized, nn.Conv3d):
    """``nn.Conv3d`` with a standardized weight: see :class:`_WeightStandardized`, its base, for all of it.

    ``V = (W - mean(W)) / sqrt(var(W) + eps)``, or with ``scaled=True``
    ``V = gain gamma (W - mean(W)) / sqrt(max(n var(W), eps))``.
    """
