"""PN-V, power normalization by the statistics of the batch (arXiv 2003.07845, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from normfuse.nn.affine import scale_and_shift
from normfuse.nn.moments import Tokens
from normfuse.nn.options import check_share
from normfuse.nn.power_base import PowerBase
from normfuse.nn.precision import cast, wide_dtype
from normfuse.nn.recomputing import kept
from normfuse.nn.running import follow

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

    shown = ("alpha_fwd",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        affine: bool = True,
        *,
        layer_scale: bool = False,
        group_num: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, affine, layer_scale, group_num, {"device": device, "dtype": dtype}
        )
        self.alpha_fwd = check_share(self, "alpha_fwd", alpha_fwd)

    def _train(self, u: Tensor, tokens: Tokens) -> Tensor:
        dtype = wide_dtype(u)
        (running,) = kept(self, cast(self.running_phi, dtype))
        wide = cast(u, dtype)
        phi = tokens.unless_empty(tokens.mean_square(wide), running)
        follow(self.running_phi, phi, 1 - self.alpha_fwd)
        rstd = torch.rsqrt(phi + self.eps)
        scale = rstd if self.weight is None else cast(self.weight, dtype) * rstd
        return scale_and_shift(u, scale, None if self.bias is None else cast(self.bias, dtype))
