"""Trainable norms of the literature, with the equations of their papers.

Those with running statistics are one scale and one shift per channel in evaluation, which a compiler can fold
into the weights beside them.
"""

from normfuse.nn.batch_norm import BatchNorm
from normfuse.nn.power_norm import PowerNorm
from normfuse.nn.power_norm_v import PowerNormV
from normfuse.nn.progressive_norm import ProgressiveNorm
from normfuse.nn.rep_batch_norm import RepBatchNorm
from normfuse.nn.unified_norm import UnifiedNorm

__all__ = [
    "BatchNorm",
    "PowerNorm",
    "PowerNormV",
    "ProgressiveNorm",
    "RepBatchNorm",
    "UnifiedNorm",
]
