"""One of each layer, with options that make its branches short."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from normfuse.nn import BatchNorm, PowerNorm, PowerNormV, ProgressiveNorm, RepBatchNorm, UnifiedNorm

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "unified": lambda: UnifiedNorm(6, window_size=3, warmup_iters=2, outlier_filtration=True),
    "power": lambda: PowerNorm(6, warmup_iters=2, layer_scale=False),
    "power_scaled": lambda: PowerNorm(6, warmup_iters=2, num_groups=2),
    "power_v": lambda: PowerNormV(6),
    "batch": lambda: BatchNorm(6),
    "rep": lambda: RepBatchNorm(6),
    "progressive": lambda: ProgressiveNorm(nn.LayerNorm(6), RepBatchNorm(6), warm=2, step=4),
}
#: Their statistics depend on the batches before, so running them again gives another output.
SMOOTHING = ("unified", "power", "power_scaled", "progressive")
