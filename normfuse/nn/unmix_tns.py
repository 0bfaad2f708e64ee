"""UnMix-TNS: normalization at test time by a mixture of components that follow the data."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normfuse.errors import InputError
from normfuse.nn.affine import add_affine, per_channel
from normfuse.nn.from_batch_norm import copy_statistics, described
from normfuse.nn.inputs import check_channels
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.precision import cast, widened
from normfuse.nn.recomputing import kept, refuse_second_run
from normfuse.nn.running import WithStatistics, batch_norm

__all__ = ["UnMixTNS"]

_TEMPERATURE = 0.07
_SPREAD = 0.5


class UnMixTNS(WithStatistics):
    """``y = weight (x - mean_b) / sqrt(var_b + eps) + bias`` with statistics of their own for each sample b.

    From "Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation" (Tomar et al.
    2024, arXiv 2401.08328, section 3). With the mean m_b and the variance v_b of each channel of a sample,
    and K components of mean mu_k and variance s_k::

        p_bk = softmax over k of cos(m_b, mu_k) / 0.07
        mu_bk = (1 - p_bk) mu_k + p_bk m_b,    s_bk = (1 - p_bk) s_k + p_bk v_b
        mean_b = mean over k of mu_bk,         var_b = mean over k of s_bk + variance over k of mu_bk
        mu_k += momentum mean over b of p_bk (m_b - mu_k), and s_k alike with v_b

    No gradient flows through p and through the components. All variances are the population's.

    It takes the place of a trained batch norm, and computes the same in training and in evaluation: **a call
    in evaluation moves the components as well**, which is the method. ``adapt = False`` stops that, for
    repeatable results. Values of (N, C), which have no axis of space, are normalized by the stored
    statistics, as by a batch norm in evaluation, and move nothing.

    The components are in float32 at least. As a batch norm's statistics in training, and here in evaluation,
    too, ``torch.func`` transforms need them among the functional arguments, and DDP broadcasts those of rank
    0; ``torch.export`` makes them outputs of the program. A second run over a batch would give another
    output, so activation checkpointing of this layer raises an error while it adapts.

    Shape: ``(N, C, ...)`` of two to five axes, to the same. Statistics are taken in float32 for half
    precision, and the result has the dtype of the input.

    Args:
        num_features: C.
        num_components: K; the authors use 16, and 128 for mixed domains.
        eps: inside of the root.
        momentum: how far components move.

    Raises:
        OptionError: from the constructor, for an option that is out of range.
        InputError: from the call, for another number of channels or axes, and for an empty batch.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    component_mean: Tensor
    component_var: Tensor

    def __init__(
        self,
        num_features: int,
        num_components: int = 16,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.num_components = check_count(self, "num_components", num_components)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        self.adapt = True
        add_affine(self, True, num_features, device=device, dtype=dtype)
        self.add_statistic("running_mean", 0.0, num_features, device=device, dtype=dtype)
        self.add_statistic("running_var", 1.0, num_features, device=device, dtype=dtype)
        for name in ("component_mean", "component_var"):
            self.add_statistic(name, 1.0, num_components, num_features, device=device, dtype=dtype)
        self.reset_components()

    @classmethod
    def from_batch_norm(
        cls, norm: _BatchNorm, num_components: int = 16, generator: torch.Generator | None = None
    ) -> UnMixTNS:
        """A layer in the place of a trained batch norm, with copies of its parameters and statistics.

        Raises:
            InputError: where it stores no statistics.
        """
        size, eps, momentum, device, dtype = described(norm)
        made = cls(size, num_components, eps, momentum, device=device, dtype=dtype)
        copy_statistics(norm, made)
        made.reset_components(generator)
        return made.train(norm.training)

    @torch.no_grad()
    def reset_components(self, generator: torch.Generator | None = None) -> None:
        """Spread the components at random around the stored statistics (the paper's alpha is 1/2).

        ``mu_k ~ N(running_mean, alpha K / (K - 1) running_var)`` and ``s_k = (1 - alpha) running_var``; a
        single component is the stored statistics themselves.
        """
        count, spread = self.num_components, _SPREAD if self.num_components > 1 else 0.0
        noise = torch.zeros_like(self.component_mean)
        if count > 1:
            noise.normal_(generator=generator)
        width = math.sqrt(spread * count / max(count - 1, 1)) * self.running_var.sqrt()
        self.component_mean.copy_(self.running_mean + width * noise)
        self.component_var.copy_(((1 - spread) * self.running_var).expand(count, -1))

    def forward(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.num_features)
        if x.dim() == 2:
            return batch_norm(self, x, training=False)
        if x.numel() == 0:
            raise InputError(f"UnMixTNS: {tuple(x.shape)} holds no values, which have no statistics")
        if self.adapt:
            refuse_second_run(self)
        z = widened(x)
        mean, var = self._mixed(*self._of_samples(z))
        y = (z - _per_sample(mean, x)) * _per_sample(torch.rsqrt(var + self.eps), x)
        return cast(y * per_channel(self.weight, x) + per_channel(self.bias, x), x.dtype)

    def _of_samples(self, z: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(z, list(range(2, z.dim())), correction=0)
        return mean, var

    def _mixed(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics of each sample; then the components move."""
        means, variances = map(widened, kept(self, self.component_mean, self.component_var))
        # No matrix product, which autocast would round, at a temperature that multiplies errors by 14.
        similarity = (F.normalize(mean.detach(), dim=1)[:, None] * F.normalize(means, dim=1)).sum(-1)
        p = torch.softmax(similarity / _TEMPERATURE, dim=1)[:, :, None]
        mixed_means = torch.lerp(means, mean[:, None], p)
        mixed_variances = torch.lerp(variances, var[:, None], p)
        if self.adapt:
            self._move(p, mean.detach(), var.detach())
        spread, centre = torch.var_mean(mixed_means, 1, correction=0)
        return centre, mixed_variances.mean(1) + spread

    @torch.no_grad()
    def _move(self, p: Tensor, mean: Tensor, var: Tensor) -> None:
        for component, seen in ((self.component_mean, mean), (self.component_var, var)):
            step = (p * (seen[:, None] - component)).mean(0)
            component.copy_(component + self.momentum * step)
        self.warn_in_step()

    def extra_repr(self) -> str:
        return listed(self, "num_features", "num_components", "eps", "momentum", "adapt")


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))
