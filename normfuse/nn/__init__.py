"""Trainable norms of the literature, with the semantics of their papers.

Those with running statistics are one scale and one shift per channel in evaluation, which a compiler can fold
into the weights beside them.
"""

from __future__ import annotations

from normfuse.nn.adaptive_layer_norm import AdaptiveLayerNorm, AdaptiveLayerNormZero
from normfuse.nn.alpha_batch_norm import AlphaBatchNorm
from normfuse.nn.batch_channel_norm import BatchChannelNorm
from normfuse.nn.batch_norm import BatchNorm
from normfuse.nn.crms_norm import CRMSNorm
from normfuse.nn.estimated_batch_norm import EstimatedBatchNorm
from normfuse.nn.evo_norm import EvoNormB0, EvoNormS0
from normfuse.nn.ibn import IBN
from normfuse.nn.placement import DepthScaledNorm, PeriNorm, PostNorm, PreNorm, mix_norm
from normfuse.nn.power_norm import PowerNorm
from normfuse.nn.power_norm_v import PowerNormV
from normfuse.nn.progressive_norm import ProgressiveNorm
from normfuse.nn.region_norm import RegionNorm
from normfuse.nn.rep_batch_norm import RepBatchNorm
from normfuse.nn.scaled_layer_norm import ScaledLayerNorm
from normfuse.nn.simple_rms_norm import SimpleRMSNorm
from normfuse.nn.time_dependent_layer_norm import TimeDependentLayerNorm, TimeDependentParameter
from normfuse.nn.unified_norm import UnifiedNorm
from normfuse.nn.unmix_tns import UnMixTNS
from normfuse.nn.weight_standardization import (
    WeightStandardizedConv1d,
    WeightStandardizedConv2d,
    WeightStandardizedConv3d,
)

__all__ = [
    "IBN",
    "AdaptiveLayerNorm",
    "AdaptiveLayerNormZero",
    "AlphaBatchNorm",
    "BatchChannelNorm",
    "BatchNorm",
    "CRMSNorm",
    "DepthScaledNorm",
    "EstimatedBatchNorm",
    "EvoNormB0",
    "EvoNormS0",
    "PeriNorm",
    "PostNorm",
    "PowerNorm",
    "PowerNormV",
    "PreNorm",
    "ProgressiveNorm",
    "RegionNorm",
    "RepBatchNorm",
    "ScaledLayerNorm",
    "SimpleRMSNorm",
    "TimeDependentLayerNorm",
    "TimeDependentParameter",
    "UnMixTNS",
    "UnifiedNorm",
    "WeightStandardizedConv1d",
    "WeightStandardizedConv2d",
    "WeightStandardizedConv3d",
    "mix_norm",
]
