"""Every public layer, with options that make its branches short, and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import normfuse.nn as layers


def tokens(*others: Any) -> Callable[[], list[torch.Tensor]]:
    return lambda: [torch.randn(3, 5, 8), *(torch.randn(shape) for shape in others)]


def images() -> list[torch.Tensor]:
    return [torch.randn(3, 8, 5, 4)]


def masked() -> list[torch.Tensor]:
    return [*images(), torch.rand(3, 1, 5, 4) > 0.5]


def norm() -> torch.nn.Module:
    return torch.nn.LayerNorm(8)


def progressive() -> torch.nn.Module:
    made = layers.ProgressiveNorm(norm(), layers.RepBatchNorm(8), warm=2, step=4)
    made._said = True  # no warning of a schedule that has not ended
    return made


def sublayer() -> torch.nn.Module:
    return torch.nn.Linear(8, 8)


ZOO: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], list[torch.Tensor]]]] = {
    "UnifiedNorm": (
        lambda: layers.UnifiedNorm(8, window_size=3, warmup_iters=2, outlier_filtration=True),
        tokens(),
    ),
    "PowerNorm": (lambda: layers.PowerNorm(8, warmup_iters=2, layer_scale=False), tokens()),
    "PowerNorm scaled": (lambda: layers.PowerNorm(8, warmup_iters=2, group_num=2), tokens()),
    "PowerNormV": (lambda: layers.PowerNormV(8), tokens()),
    "BatchNorm": (lambda: layers.BatchNorm(8), tokens()),
    "RepBatchNorm": (lambda: layers.RepBatchNorm(8), tokens()),
    "ProgressiveNorm": (progressive, tokens()),
    "CRMSNorm": (lambda: layers.CRMSNorm(8, elementwise_affine=True), tokens()),
    "SimpleRMSNorm": (lambda: layers.SimpleRMSNorm(8), tokens()),
    "SimpleRMSNorm outside": (lambda: layers.SimpleRMSNorm(8, eps_form="outside"), tokens()),
    "SimpleRMSNorm clamp": (lambda: layers.SimpleRMSNorm(8, eps_form="clamp"), tokens()),
    "ScaledLayerNorm": (lambda: layers.ScaledLayerNorm(8, 3), tokens()),
    "WeightStandardizedConv1d": (lambda: layers.WeightStandardizedConv1d(5, 4, 3), tokens()),
    "WeightStandardizedConv2d": (lambda: layers.WeightStandardizedConv2d(8, 4, 3, scaled=True), images),
    "WeightStandardizedConv3d": (
        lambda: layers.WeightStandardizedConv3d(2, 4, 2),
        lambda: [torch.randn(2, 2, 3, 3, 3)],
    ),
    "EstimatedBatchNorm": (lambda: layers.EstimatedBatchNorm(8), images),
    "BatchChannelNorm": (lambda: layers.BatchChannelNorm(8, 2), images),
    "BatchChannelNorm estimate": (lambda: layers.BatchChannelNorm(8, 2, estimate=True), images),
    "EvoNormB0": (lambda: layers.EvoNormB0(8), images),
    "EvoNormS0": (lambda: layers.EvoNormS0(8, 2), images),
    "IBN": (lambda: layers.IBN(8), images),
    "TimeDependentParameter": (lambda: layers.TimeDependentParameter(8, 0.5), lambda: [torch.randn(3)]),
    "TimeDependentLayerNorm": (lambda: layers.TimeDependentLayerNorm(8), tokens((3,))),
    "TimeDependentLayerNorm rms": (lambda: layers.TimeDependentLayerNorm(8, rms=True), tokens((3,))),
    "AdaptiveLayerNorm": (lambda: layers.AdaptiveLayerNorm(8, 4), tokens((3, 4))),
    "AdaptiveLayerNormZero": (lambda: layers.AdaptiveLayerNormZero(8, 4), tokens((3, 4))),
    "RegionNorm": (lambda: layers.RegionNorm(8), masked),
    "AlphaBatchNorm": (lambda: layers.AlphaBatchNorm(8), images),
    "UnMixTNS": (lambda: layers.UnMixTNS(8, 4), images),
    "PreNorm": (lambda: layers.PreNorm(norm, sublayer()), tokens()),
    "PostNorm": (lambda: layers.PostNorm(norm, sublayer()), tokens()),
    "PeriNorm": (lambda: layers.PeriNorm(norm, sublayer()), tokens()),
    "DepthScaledNorm": (lambda: layers.DepthScaledNorm(norm, sublayer(), 3), tokens()),
}
#: Channels last, running statistics, and a mask for padding.
MASKED = (
    "UnifiedNorm", "PowerNorm", "PowerNorm scaled", "PowerNormV", "BatchNorm", "RepBatchNorm",
    "ProgressiveNorm",
)  # fmt: skip
#: Their outputs or gradients depend on the batches before, so running them again gives others.
SMOOTHING = ("UnifiedNorm", "PowerNorm", "PowerNorm scaled", "ProgressiveNorm")
#: The others that move buffers in training; of these, one moves them in evaluation as well.
MOVING = (
    "BatchNorm", "PowerNormV", "RepBatchNorm", "AlphaBatchNorm",
    "BatchChannelNorm", "BatchChannelNorm estimate", "EstimatedBatchNorm", "EvoNormB0",
    "IBN", "UnMixTNS",
)  # fmt: skip


def build(name: str) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """A layer with random parameters, and inputs."""
    torch.manual_seed(0)
    make, inputs = ZOO[name]
    layer, given = make(), inputs()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer, given


def mostly_slow(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """All of the names, of which those that are not quick run with the slow tests."""
    return [pytest.param(k, marks=[] if k in quick else pytest.mark.slow) for k in names]
