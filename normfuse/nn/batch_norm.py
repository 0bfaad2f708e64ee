"""Batch normalization of channels that lie last (arXiv 1502.03167)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.nn.affine import scale_and_shift, scaled
from normfuse.nn.inputs import check_several, check_tokens
from normfuse.nn.moments import Tokens
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.precision import cast, wide_dtype, widened
from normfuse.nn.recomputing import kept
from normfuse.nn.running import WithStatistics, batch_norm, follow

__all__ = ["BatchNorm"]


class BatchNorm(WithStatistics, nn.BatchNorm1d):
    r"""``nn.BatchNorm1d`` for inputs of shape (..., C), without transposing, and with a mask for padding.

        training:    y = weight * (x - mean_batch) / sqrt(var_batch + eps) + bias
        evaluation:  y = weight * (x - running_mean) / sqrt(running_var + eps) + bias

    "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", arXiv
    1502.03167. ``var_batch`` divides by n, ``running_var`` follows the one that divides by n - 1. Options,
    buffers and their names are those of ``nn.BatchNorm1d`` (``momentum`` is the share of the new value), with
    running statistics and a fixed momentum. Evaluation is one scale and one shift per channel; before the
    first training step the running mean is zero and the running variance one.

    Shape:
        x: (..., C), floating point, two axes at least; the output has its shape and dtype.
        pad_mask: (...), bool, True at padding, which is normalized but takes no part in the statistics. With
            fewer than two valid tokens the running statistics normalize, and stay.

    Running statistics are in float32 at least, also in a model in half precision.

    Raises:
        OptionError: for an option that is out of range.
        InputError: (at a call) for a wrong shape, dtype or mask, or in training for fewer than two tokens.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count(self, "num_features", num_features)
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        for name in ("running_mean", "running_var"):
            self._buffers[name] = widened(self.get_buffer(name))
        check_eps(self, eps)
        check_share(self, "momentum", momentum)

    def forward(self, input: Tensor, pad_mask: Tensor | None = None) -> Tensor:  # noqa: A002 as in nn.BatchNorm1d
        """Normalize ``input``; ``pad_mask`` matters in training only."""
        check_tokens(self, input, pad_mask, self.num_features)
        if not self.training:
            return scale_and_shift(input, *self.scale_and_shift(wide_dtype(input)))
        check_several(self, input.numel() // self.num_features, "channel")
        self.num_batches_tracked.add_(1)
        return self._plain(input) if pad_mask is None else self._masked(input, Tokens(input, pad_mask))

    def scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What evaluation multiplies by and adds."""
        bias: Tensor | None = self.bias
        scale = scaled(self.weight, self.running_var, self.eps, dtype)
        shift = -cast(self.running_mean, dtype) * scale
        return scale, shift if bias is None else shift + cast(bias, dtype)

    def set_statistics(self, mean: Tensor, mean_square: Tensor) -> None:
        """Take over statistics of inputs, (C,) each, for evaluation."""
        self.running_mean.copy_(mean)
        self.running_var.copy_((mean_square - mean.square()).clamp(min=0))

    def _plain(self, x: Tensor) -> Tensor:
        return batch_norm(self, x.reshape(-1, self.num_features), training=True).reshape(x.shape)

    def _masked(self, x: Tensor, tokens: Tokens) -> Tensor:
        dtype = wide_dtype(x)
        bias: Tensor | None = self.bias
        wide, count = cast(x, dtype), torch.as_tensor(tokens.count)
        mean = tokens.mean(wide)
        var = tokens.mean_square(wide - mean)
        is_defined = count > 1
        # Where it is not defined, the running statistics stay what they are.
        frozen = kept(self, cast(self.running_mean, dtype), cast(self.running_var, dtype))
        unbiased = var * count / (count - 1).clamp(min=1)
        self._follow(mean.detach(), unbiased.detach(), is_defined)
        mean, var = (torch.where(is_defined, m, k) for m, k in zip((mean, var), frozen, strict=True))
        shift = None if bias is None else cast(bias, dtype)
        return cast(scale_and_shift(wide - mean, scaled(self.weight, var, self.eps, dtype), shift), x.dtype)

    def _follow(self, mean: Tensor, var: Tensor, is_defined: Tensor) -> None:
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            follow(running, torch.where(is_defined, new, running), self.momentum)
        self.warn_in_step()

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", "momentum", "affine")
