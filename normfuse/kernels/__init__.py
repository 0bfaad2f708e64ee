"""Norms as Triton kernels, with gradients: what is left of a norm when nothing can be rewritten.

    from normfuse.kernels import rms_norm
    y, h = rms_norm(x, weight, residual=stream)

Tensors on a CUDA device take the kernels; all others the reference in plain PyTorch, which computes the same.
"""

from __future__ import annotations

from normfuse.kernels.linear import linear_rms_norm
from normfuse.kernels.norms import crms_norm, layer_norm, rms_norm, row_scale

__all__ = ["crms_norm", "layer_norm", "linear_rms_norm", "rms_norm", "row_scale"]
