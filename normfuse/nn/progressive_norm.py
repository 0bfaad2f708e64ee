"""Progressive replacement of one norm by another (arXiv 2405.11582)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfuse.nn.options import check_count, check_module, check_share
from normfuse.nn.precision import wide_dtype
from normfuse.nn.recomputing import kept, refuse_second_run
from normfuse.warn import warn_user

__all__ = ["ProgressiveNorm"]


class ProgressiveNorm(nn.Module):
    r"""From ``norm1`` to ``norm2`` in a straight line over ``step`` training steps.

        training:    y = lambda * norm1(x) + (1 - lambda) * norm2(x),    lambda = r0 * iter / step
        evaluation:  y = norm2(x)

    PRepBN of "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized
    Batch Normalization", arXiv 2405.11582, section 3.2, where ``norm1`` is a LayerNorm and ``norm2`` a
    :class:`normfuse.nn.RepBatchNorm`. ``lambda`` is one for the first ``warm`` steps; then ``iter`` counts
    from ``step`` down to zero.

    Evaluation computes ``norm2`` alone, whatever ``lambda`` is: in the middle of the schedule that is another
    function than the one in training. The first evaluation before the end warns.

    Both norms run at every training step, so that nothing depends on a counter in Python; in the warm-up
    ``norm2`` takes statistics already, and its parameters get gradients of zero.

    Args:
        norm1, norm2: modules; norm2 is called with ``pad_mask`` where one is given.
        warm: training steps of norm1 alone.
        step: training steps from norm1 to norm2.
        r0: lambda right after the warm-up.

    Buffers have the names of the paper's code: ``warm`` (steps left), ``iter`` (steps left), ``total_step``.
    Activation checkpointing would count each step twice, and raises an error: put the layer outside.

    Raises:
        OptionError: for an option that is out of range.
    """

    warm: Tensor
    iter: Tensor
    total_step: Tensor

    def __init__(
        self, norm1: nn.Module, norm2: nn.Module, warm: int = 0, step: int = 300_000, r0: float = 1.0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = check_module(self, "norm1", norm1), check_module(self, "norm2", norm2)
        self.r0 = check_share(self, "r0", r0)
        check_count(self, "warm", warm, least=0)
        check_count(self, "step", step)
        anchor = next((p for p in norm2.parameters()), None)
        made: dict[str, Any] = {"dtype": torch.int64, "device": None if anchor is None else anchor.device}
        for name, value in (("warm", warm), ("iter", step), ("total_step", step)):
            self.register_buffer(name, torch.tensor(value, **made))
        self._said = False

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalize ``x``."""
        rest = () if pad_mask is None else (pad_mask,)
        if not self.training:
            self._warn_before_the_end()
            y: Tensor = self.norm2(x, *rest)
            return y
        refuse_second_run(self)
        share, rest_of_share = self._shares(wide_dtype(x))
        mixed: Tensor = share * self.norm1(x) + rest_of_share * self.norm2(x, *rest)
        return mixed

    def _shares(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """``lambda`` and one minus it in this step; the counters move on."""
        is_warm = self.warm > 0
        share = torch.where(is_warm, 1.0, self.r0 * self.iter.to(dtype) / self.total_step)
        shares = kept(self, share, 1 - share)
        self.iter.copy_(torch.where(is_warm, self.iter, (self.iter - 1).clamp(min=0)))
        self.warm.copy_((self.warm - 1).clamp(min=0))
        return shares

    def _warn_before_the_end(self) -> None:
        if self._said or torch.compiler.is_compiling():
            return
        self._said = True
        left = int(self.warm) + int(self.iter)
        if left > 0 and self.r0 > 0:
            warn_user(
                f"ProgressiveNorm is evaluated {left} steps before its schedule ends: evaluation computes "
                "norm2 alone, another function than training computes now"
            )

    def extra_repr(self) -> str:
        return f"r0={self.r0}"
