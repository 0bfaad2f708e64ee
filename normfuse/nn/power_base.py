"""What both power norms share: layer scaling, parameters, and the affine map of evaluation.

u = x / sqrt(mean_group(x^2) + 1e-5)                               (layer scaling, per token)
evaluation:  y = weight * u / sqrt(running_phi + eps) + bias
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.nn.affine import add_affine, scale_and_shift, scaled
from normfuse.nn.inputs import check_tokens
from normfuse.nn.moments import Tokens
from normfuse.nn.options import check_count, check_eps, check_groups, listed
from normfuse.nn.precision import cast, wide_dtype
from normfuse.nn.running import WithStatistics

__all__ = ["PowerBase"]

_SCALING_EPS = 1e-5


class PowerBase(WithStatistics):
    """A quadratic-mean norm per channel with the running statistic ``running_phi``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_phi: Tensor
    #: Options that ``repr`` shows besides.
    shown: tuple[str, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float,
        affine: bool,
        layer_scale: bool,
        group_num: int,
        made: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.group_num = check_groups(self, group_num, num_features)
        self.eps, self.affine, self.layer_scale = check_eps(self, eps), affine, layer_scale
        add_affine(self, affine, num_features, **made)
        self.add_statistic("running_phi", 1.0, num_features, **made)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalize ``x``; ``pad_mask`` matters in training only."""
        check_tokens(self, x, pad_mask, self.num_features)
        u = self.observed(x)
        if not self.training:
            return cast(self._evaluate(u), x.dtype)
        y = self._train(u, Tokens(u, pad_mask))
        self.warn_in_step()
        return cast(y, x.dtype)

    def observed(self, x: Tensor) -> Tensor:
        """What the statistics are taken of: ``x`` after layer scaling."""
        if not self.layer_scale:
            return x
        if self.group_num == 1:
            return F.rms_norm(x, (self.num_features,), eps=_SCALING_EPS)
        groups = x.unflatten(-1, (self.group_num, -1))
        return F.rms_norm(groups, groups.shape[-1:], eps=_SCALING_EPS).flatten(-2)

    def set_statistics(self, mean: Tensor, mean_square: Tensor) -> None:
        """Take over statistics of what :meth:`observed` returns, (C,) each; the mean plays no part here."""
        self.running_phi.copy_(mean_square)

    def _train(self, u: Tensor, tokens: Tokens) -> Tensor:
        raise NotImplementedError

    def _evaluate(self, u: Tensor) -> Tensor:
        dtype = wide_dtype(u)
        shift = None if self.bias is None else cast(self.bias, dtype)
        return scale_and_shift(u, scaled(self.weight, self.running_phi, self.eps, dtype), shift)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The paper's code stores statistics as (1, C, 1, 1)."""
        for name in ("running_phi", "ema_gz"):
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dim() == 4:
                state_dict[prefix + name] = value.flatten()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return listed(self, "num_features", "eps", *self.shown, "affine", "layer_scale", "group_num")
