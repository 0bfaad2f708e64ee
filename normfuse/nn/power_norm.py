"""Power normalization (arXiv 2003.07845)."""

from __future__ import annotations

import torch
from torch import Tensor

from normfuse.nn.affine import ones_and_zeros
from normfuse.nn.moments import Tokens
from normfuse.nn.options import check_count, check_share
from normfuse.nn.power_base import PowerBase
from normfuse.nn.power_gradient import PowerGradient
from normfuse.nn.precision import cast, wide_dtype
from normfuse.nn.recomputing import kept, refuse_second_run

__all__ = ["PowerNorm"]


class PowerNorm(PowerBase):
    r"""Quadratic-mean norm per channel with the running statistic in training as well.

        training:    y = weight * u / sqrt(phi_{t-1} + eps) + bias
                     phi_t = alpha_fwd phi_{t-1} + (1 - alpha_fwd) mean_batch(u^2)
        evaluation:  y = weight * u / sqrt(running_phi + eps) + bias

    "PowerNorm: Rethinking Batch Normalization in Transformers", arXiv 2003.07845, section 4.2. ``u`` is ``x``
    divided by the quadratic mean of its channels (``layer_scale``), token by token, in ``group_num`` groups.

    Up to step ``warmup_iters`` the norm is PN-V: the batch's own mean square, and the derivative as the
    gradient; before that step ``running_phi`` is the average of all batches so far, moved as above. From then
    on the gradient is the paper's approximation, which subtracts a running statistic and divides by the same
    ``sqrt(phi_{t-1} + eps)`` as the forward pass. The authors' code divides by the statistic of the batch
    there, and uses the approximation in warm-up too.

    Evaluation is one scale and one shift per channel; with ``layer_scale`` a grouped RMSNorm stays in front
    of it. Before the first training step ``running_phi`` is one.

    Args:
        num_features: channels C.
        eps: added to the mean square.
        alpha_fwd, alpha_bkw: shares that running statistics keep, of activations and of gradients;
            nn.BatchNorm counts the other way round.
        affine: whether there are ``weight`` and ``bias``.
        warmup_iters: steps of PN-V at the start.
        layer_scale: whether each token is divided by its quadratic mean first.
        group_num: groups of channels for that, for example the heads; it divides ``num_features``.

    Shape:
        x: (..., C), floating point, two axes at least; the output has its shape and dtype.
        pad_mask: (...), bool, True at padding, which is normalized but takes no part in the statistics. A
            batch of padding alone, or an empty one, counts as one with the running statistics.

    Statistics are in float32 at least, bounded and watched as those of :class:`normfuse.nn.UnifiedNorm`.
    ``ema_gz`` is written in the backward pass. Distributed
    training, torch.func and activation checkpointing: see :class:`normfuse.nn.UnifiedNorm`. Checkpoints of
    the paper's code load.

    Raises:
        OptionError: for an option that is out of range.
        InputError: (at a call) for a wrong shape, dtype or mask.
    """

    shown = ("alpha_fwd", "alpha_bkw", "warmup_iters")
    ema_gz: Tensor
    iters: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bkw: float = 0.9,
        affine: bool = True,
        *,
        warmup_iters: int = 10000,
        layer_scale: bool = True,
        group_num: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, affine, layer_scale, group_num, {"device": device, "dtype": dtype}
        )
        self.alpha_fwd = check_share(self, "alpha_fwd", alpha_fwd)
        self.alpha_bkw = check_share(self, "alpha_bkw", alpha_bkw)
        self.warmup_iters = check_count(self, "warmup_iters", warmup_iters, least=0)
        self.add_statistic("ema_gz", 0.0, num_features, device=device, dtype=dtype)
        self.register_buffer("iters", torch.zeros(1, dtype=torch.int64, device=device))

    def _train(self, u: Tensor, tokens: Tokens) -> Tensor:
        refuse_second_run(self)
        dtype = wide_dtype(u)
        self.iters.add_(1)
        iteration, running = self.iters.squeeze(0).clone(), cast(self.running_phi, dtype)
        x2 = tokens.unless_empty(tokens.mean_square(cast(u.detach(), dtype)), running)
        is_warm = iteration <= self.warmup_iters
        rstd, warm = kept(self, torch.rsqrt(torch.where(is_warm, x2, running) + self.eps), is_warm)
        self.running_phi.copy_(self._moved(running, x2, iteration))
        affine = ones_and_zeros(self.weight, self.bias, self.running_phi, dtype)
        state = (tokens, rstd, warm, self.ema_gz, self.alpha_bkw)
        y: Tensor = PowerGradient.apply(u, *affine, *state)  # type: ignore[no-untyped-call]
        return y

    def _moved(self, running: Tensor, x2: Tensor, iteration: Tensor) -> Tensor:
        """The next ``running_phi``: in warm-up the average of all batches comes first."""
        average = running + (x2 - running) / iteration
        start = torch.where(iteration < self.warmup_iters, average, running)
        return self.alpha_fwd * start + (1 - self.alpha_fwd) * x2
