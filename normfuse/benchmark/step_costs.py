"""Measure what an RMSNorm saves at a training step in a LayerNorm's place, and what a centring costs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from normfuse.analysis.step_costs import StepCosts, keep
from normfuse.benchmark.timing import Contender, Schedule, run_rounds
from normfuse.errors import InputError

__all__ = ["keep", "measure_step_costs"]

#: Rows and width of the values, dtype; the weight is as wide and four times as high.
_SIZES = {"cpu": (2048, 768, torch.float32), "cuda": (16384, 4096, torch.bfloat16)}


def measure_step_costs(device: str, seconds: float = 10.0) -> StepCosts:
    """Seconds for each byte, compiled by Inductor, forward and backward; a saving below zero counts as none.

    Raises:
        InputError: for a device that is not there.
    """
    kind = torch.device(device).type
    if kind not in _SIZES or (kind == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"there is no device {device} here; choose cpu or one of CUDA's")
    rows, width, dtype = _SIZES[kind]
    x, weight, scale, shift = (
        torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        for shape in ((rows, width), (4 * width, width), (width,), (width,))
    )
    contenders = {
        "layer_norm": _step(lambda: F.layer_norm(x, (width,), scale, shift), device),
        "rms_norm": _step(lambda: F.rms_norm(x, (width,), scale), device),
        "centring": _step(lambda: weight - weight.mean(0), device),
    }
    found = run_rounds(contenders, "layer_norm", Schedule(seconds=seconds)).seconds
    saved = median(a - b for a, b in zip(found["layer_norm"], found["rms_norm"], strict=True))
    return StepCosts(max(saved, 0.0) / x.nbytes, median(found["centring"]) / weight.nbytes, "seconds")


def _step(forward: Callable[[], Tensor], device: str) -> Contender:
    """A compiled forward and backward pass."""
    compiled = torch.compile(forward)
    gradient = torch.randn_like(forward())

    def step() -> None:
        compiled().backward(gradient)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return step
