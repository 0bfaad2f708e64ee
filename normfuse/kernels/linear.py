"""A product that reads an RMSNorm, in one kernel."""

from __future__ import annotations

from typing import Any

import torch

from normfuse.errors import InputError
from normfuse.kernels.arguments import check_beside, check_eps, check_rows, check_tensor, check_vector
from normfuse.kernels.device import HAS_TRITON, on_device, takes_kernel
from normfuse.kernels.reference import linear_reference

if HAS_TRITON:
    from normfuse.kernels import linear_operator

__all__ = ["linear_rms_norm"]


def linear_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
) -> Any:
    """The linear layer behind an RMSNorm without weight, and what stands before both in a transformer:

        h = x + residual
        y = (h W') * rstd + b,   rstd = 1 / sqrt(mean(h ** 2) + eps)

    The weight of the norm multiplies the columns of W beforehand (Graef, Wasielewski and Clapp, FlashNorm,
    arXiv 2407.09577, section 1). The sum of squares is taken in the loop that reads ``x`` for the product, so
    the normalized values are never stored. Products and sums are float32, rounded once; float32 tensors are
    multiplied in TF32 where ``torch.backends.cuda.matmul.fp32_precision`` is ``"tf32"``. Evaluation and
    training compute the same.

    Args:
        x: ``(..., inputs)``, float32, bfloat16 or float16; rows may be strided or none.
        weight: ``(outputs, inputs)`` in the dtype of ``x``.
        bias: ``(outputs,)`` or None.
        eps: a positive number.
        residual: of the shape and dtype of ``x``; h is rounded to that dtype, as PyTorch rounds it.

    Returns:
        y, ``(..., outputs)`` in the dtype of ``x``; with a residual ``(y, h)``.

    Raises:
        InputError: a ValueError, for shapes, dtypes and devices that do not fit together.
    """
    where = "linear_rms_norm"
    check_rows(where, x)
    check_eps(where, eps)
    _check_weight(where, x, weight)
    check_vector(where, "bias", bias, weight.shape[0], x)
    check_beside(where, "residual", residual, x, same_dtype=True)
    if not takes_kernel(where, x):
        y, h = linear_reference(x, weight, bias, residual, eps)
    else:
        with on_device(x):
            y, h, _ = linear_operator.linear(x, weight, bias, residual, eps)
    return y if residual is None else (y, h)


def _check_weight(where: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    check_tensor(where, "weight", weight)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(
            f"{where}: weight has the shape {tuple(weight.shape)}; for rows of {x.shape[-1]} values "
            f"it must be (outputs, {x.shape[-1]})"
        )
    if weight.dtype != x.dtype or weight.device != x.device:
        raise InputError(
            f"{where}: weight is {weight.dtype} on {weight.device}, x {x.dtype} on {x.device}; "
            "convert or move one of them"
        )
