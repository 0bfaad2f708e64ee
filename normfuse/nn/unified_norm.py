"""Unified normalization (arXiv 2208.01313)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normfuse.errors import OptionError
from normfuse.nn.affine import add_affine, ones_and_zeros, scale_and_shift, scaled
from normfuse.nn.inputs import check_tokens
from normfuse.nn.moments import Tokens
from normfuse.nn.options import check_count, check_eps, check_share, listed
from normfuse.nn.precision import cast, wide_dtype
from normfuse.nn.recomputing import kept, refuse_second_run
from normfuse.nn.running import WithStatistics
from normfuse.nn.smoothed_gradient import SmoothedGradient
from normfuse.nn.smoothing import Smoothed, clip_ratio, is_instant, smooth

__all__ = ["UnifiedNorm"]


class UnifiedNorm(WithStatistics):
    r"""Quadratic-mean norm per channel whose statistics are smoothed over the last batches.

        training:    y = weight * x / sqrt(s2_t + eps) + bias
        evaluation:  y = weight * x / sqrt(running_var + eps) + bias

    "Unified Normalization for Accelerating and Stabilizing Transformers", arXiv 2208.01313. ``s2_t`` is the
    geometric mean of the mean squares of the last ``window_size`` batches; in the first ``warmup_iters``
    steps, and for outliers, it is the mean square of the batch. With ``outlier_filtration`` a batch is an
    outlier where, for some channel, the arithmetic mean of the window exceeds the geometric one by more than
    ``window_size`` times the variance of the square roots in the window. No mean is subtracted.
    ``running_var`` follows ``s2_t``.

    The gradient is the paper's, which smooths the gradient's statistics too: by an arithmetic mean over the
    window and a moving average, corrected by the ratio of ``s2_t`` and ``running_var``. It is the derivative
    of the forward pass only with a window of one.

    Evaluation is one scale and one shift per channel. Before the first training step ``running_var`` is one.

    Args:
        num_features: channels C.
        eps: added to the mean square.
        momentum: the share that moving averages keep, as in the paper; nn.BatchNorm counts the other way
            round.
        affine: whether there are ``weight`` and ``bias``.
        window_size: batches in the windows, one number or (forward, backward). A forward window of one uses
            the statistics of the batch in both directions.
        warmup_iters: steps before smoothing starts. Set ``iters`` to zero (:meth:`reset_warmup`) to
            fine-tune.
        outlier_filtration: the paper's choice is False for language, True for images.

    Shape:
        x: (..., C), floating point, two axes at least; the output has its shape and dtype.
        pad_mask: (...), bool, True at padding, which is normalized but takes no part in the statistics. A
            batch of padding alone, or an empty one, counts as one with the running statistics.

    Statistics are in float32 at least, also in a model in half precision. Mean squares beyond half of the
    largest number count as that; where statistics become so large, or nan, a warning says so, at ``eval()``
    or, in eager mode on a CPU, in the step itself. The gradient's (``ema_gz``,
    ``buffer_gz``) are written in the backward pass, the others in the forward pass. As with nn.BatchNorm,
    each process of DistributedDataParallel takes the statistics of its own batch, and the buffers of the
    first one are copied to all; under torch.func transforms, which refuse to write buffers, training
    raises an error and evaluation works. Unlike nn.BatchNorm, a second run over a batch would give
    another output, so activation checkpointing of this layer raises an error. Parameters and buffers have
    the names and shapes of the paper's code, whose checkpoints load.

    Raises:
        OptionError: for an option that is out of range.
        InputError: (at a call) for a wrong shape, dtype or mask.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        *,
        window_size: int | Sequence[int] = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features)
        self.eps, self.momentum = check_eps(self, eps), check_share(self, "momentum", momentum)
        self.affine, self.window_size = affine, self._windows(window_size)
        self.warmup_iters = check_count(self, "warmup_iters", warmup_iters, least=0)
        self.outlier_filtration = outlier_filtration
        add_affine(self, affine, num_features, device=device, dtype=dtype)
        self._register_buffers({"device": device, "dtype": dtype})

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_var: Tensor
    ema_gz: Tensor
    buffer_x2: Tensor
    buffer_gz: Tensor
    iters: Tensor
    skip_counter: Tensor

    def _register_buffers(self, made: dict[str, Any]) -> None:
        channels, (forward, backward) = self.num_features, self.window_size
        self.add_statistic("running_var", 1.0, channels, **made)
        self.add_statistic("ema_gz", 0.0, channels, **made)
        self.add_statistic("buffer_x2", 0.0, forward, channels, **made)
        self.add_statistic("buffer_gz", 0.0, backward, channels, **made)
        for name in ("iters", "skip_counter"):
            self.register_buffer(name, torch.zeros(1, dtype=torch.int64, device=made["device"]))

    def reset_warmup(self) -> None:
        """Start the warm-up again, as the paper's authors advise before fine-tuning."""
        self.iters.zero_()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Normalize ``x``; ``pad_mask`` matters in training only."""
        check_tokens(self, x, pad_mask, self.num_features)
        if self.training:
            return self._train(x, Tokens(x, pad_mask))
        dtype = wide_dtype(x)
        shift = None if self.bias is None else cast(self.bias, dtype)
        return scale_and_shift(x, scaled(self.weight, self.running_var, self.eps, dtype), shift)

    def _train(self, x: Tensor, tokens: Tokens) -> Tensor:
        refuse_second_run(self)
        dtype = wide_dtype(x)
        self.iters.add_(1)
        iteration = self.iters.squeeze(0).clone()
        running, warmup = cast(self.running_var, dtype), self.warmup_iters
        x2 = tokens.unless_empty(tokens.mean_square(cast(x.detach(), dtype)), running)
        found = smooth(x2, cast(self.buffer_x2, dtype), running, iteration, warmup, self.outlier_filtration)
        batch = self._of_batch(found, running, iteration)
        self.buffer_x2.copy_(found.window)
        self.skip_counter.add_(found.is_outlier)
        self.running_var.copy_(self.momentum * running + (1 - self.momentum) * found.mean_square)
        self.warn_in_step()
        affine = ones_and_zeros(self.weight, self.bias, self.running_var, dtype)
        state = (*batch, self.ema_gz, self.buffer_gz, self.momentum)
        y: Tensor = SmoothedGradient.apply(x, *affine, tokens, *state)  # type: ignore[no-untyped-call]
        return y

    def _of_batch(self, found: Smoothed, running: Tensor, iteration: Tensor) -> tuple[Tensor, ...]:
        """The fields of :class:`normfuse.nn.smoothed_gradient.GradientState` that belong to one batch."""
        size, warmup = self.window_size[1], self.warmup_iters
        return kept(
            self,
            torch.rsqrt(found.mean_square + self.eps),
            clip_ratio(found.mean_square, running, self.eps, iteration, warmup, found.skip),
            found.skip,
            is_instant(iteration, size, warmup) | found.skip,
            iteration % size,
        )

    def set_statistics(self, mean: Tensor, mean_square: Tensor) -> None:
        """Take over statistics of inputs, (C,) each, for evaluation; the mean plays no part here."""
        self.running_var.copy_(mean_square)

    def extra_repr(self) -> str:
        own = ("window_size", "warmup_iters", "outlier_filtration")
        return listed(self, "num_features", "eps", "momentum", "affine", *own)

    def _windows(self, window_size: int | Sequence[int]) -> tuple[int, int]:
        given = window_size if isinstance(window_size, Sequence) else (window_size, window_size)
        if len(given) != 2:
            raise OptionError(
                f"UnifiedNorm: window_size is one number or (forward, backward), not {window_size!r}"
            )
        forward, backward = (check_count(self, "window_size", size) for size in given)
        return forward, backward
