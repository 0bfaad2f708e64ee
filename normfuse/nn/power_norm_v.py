"""PN-V, power normalization by the statistics of the batch (arXiv 2003.07845, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from normfuse.nn.affine import scale_and_shift
from normfuse.nn.inputs import check_fraction, wide_dtype, widen
from normfuse.nn.moments import Tokens
from normfuse.nn.power_base import PowerBase
from normfuse.nn.recomputing import kept

__all__ = ["PowerNormV"]


class PowerNormV(PowerBase):
    r"""Quadratic-mean norm per channel with the statistics of the batch: batch norm without the mean.

        training:    y = weight * u / sqrt(mean_batch(u^2) + eps) + bias
        evaluation:  y = weight * u / sqrt(running_phi + eps) + bias

    PN-V of "PowerNorm: Rethinking Batch Normalization in Transformers", arXiv 2003.07845, section 4.1. The
    gradient is the derivative. ``u`` is ``x``, or with ``layer_scale`` the grouped RMSNorm of ``x``, which
    evaluation computes too.

    Args:
        num_features: channels C.
        eps: added to the mean square.
        alpha_fwd: the share that ``running_phi`` keeps, as in the paper; nn.BatchNorm counts the other way
            round.
        affine: whether there are ``weight`` and ``bias``.
        layer_scale: whether each token is divided by its quadratic mean first.
        group_num: groups of channels for that, for example the heads.

    Shapes, dtypes, padding and errors: see :class:`normfuse.nn.PowerNorm`. As with nn.BatchNorm, activation
    checkpointing moves ``running_phi`` twice for each batch; the output is the same both times.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        affine: bool = True,
        layer_scale: bool = False,
        group_num: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, affine, layer_scale, group_num, {"device": device, "dtype": dtype}
        )
        self.alpha_fwd = check_fraction(alpha_fwd, "alpha_fwd", "PowerNormV")

    def _train(self, u: Tensor, tokens: Tokens) -> Tensor:
        dtype = wide_dtype(u)
        (running,) = kept(self, widen(self.running_phi, dtype))
        wide = widen(u, dtype)
        phi = tokens.unless_empty(tokens.mean_square(wide), running)
        self.running_phi.copy_(self.alpha_fwd * running + (1 - self.alpha_fwd) * phi.detach())
        rstd = torch.rsqrt(phi + self.eps)
        scale = rstd if self.weight is None else widen(self.weight, dtype) * rstd
        return scale_and_shift(u, scale, None if self.bias is None else widen(self.bias, dtype))
