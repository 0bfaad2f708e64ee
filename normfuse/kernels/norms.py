"""The norms of ``normfuse.kernels`` as functions: checked arguments, and the results that were asked for."""

from __future__ import annotations

from typing import Any

import torch

from normfuse.kernels.arguments import (
    check_beside,
    check_eps,
    check_groups,
    check_rows,
    check_used,
    check_vector,
)
from normfuse.kernels.device import HAS_TRITON, on_device, takes_kernel
from normfuse.kernels.reference import CRMS, LAYER, RMS, norm_reference

if HAS_TRITON:
    from normfuse.kernels import operators

__all__ = ["crms_norm", "layer_norm", "rms_norm", "row_scale"]

Maybe = torch.Tensor | None


def rms_norm(
    x: torch.Tensor,
    weight: Maybe = None,
    bias: Maybe = None,
    eps: float = 1e-6,
    residual: Maybe = None,
    *,
    gate: Maybe = None,
    gate_first: bool = False,
    weight_offset: float = 0.0,
    groups: int = 1,
    return_rstd: bool = False,
) -> Any:
    """RMSNorm over the last dimension of ``x`` (Zhang and Sennrich, Root Mean Square Layer Normalization,
    arXiv 1910.07467, section 3), with what stands before and behind it in a transformer:

        h = x + residual
        y = h * rstd * (weight_offset + weight) + bias,   rstd = 1 / sqrt(mean(h ** 2) + eps)

    Everything behind the sum is computed in float32 and rounded once. Evaluation and training compute the
    same; gradients are defined once, for all tensors.

    Args:
        x: ``(..., features)``, float32, bfloat16 or float16; rows may be strided or none.
        weight, bias: ``(features,)`` of any of these dtypes.
        eps: a positive number, so a row of zeros gives zeros and never nan.
        residual: of the shape and dtype of ``x``; the sum is rounded to that dtype, as PyTorch rounds it.
        gate: of the shape of ``x``; the result is multiplied with ``silu(gate)`` (Dao and Gu, Transformers
            are SSMs, arXiv 2405.21060, section 7.1), or h before the norm where ``gate_first``.
        weight_offset: 1.0 for weights that are stored as a difference from one (Gemma).
        groups: so many parts of the features, of equal width of at most 65,536, have a root each.
        return_rstd: return the factors of the rows too.

    Returns:
        ``y`` in the dtype of ``x``; or a tuple of ``y``, the sum h where there is a residual, and ``rstd``
        in float32 where it was asked for, of the shape ``(...)``, or ``(..., groups)`` for several groups.

    Raises:
        InputError: a ValueError, for shapes, dtypes and devices that do not fit together.
    """
    form = (RMS, eps, weight_offset, groups, gate_first)
    return _call("rms_norm", x, (weight, bias, residual, gate), form, True, return_rstd)


def layer_norm(
    x: torch.Tensor,
    weight: Maybe = None,
    bias: Maybe = None,
    eps: float = 1e-5,
    residual: Maybe = None,
    *,
    gate: Maybe = None,
    gate_first: bool = False,
    weight_offset: float = 0.0,
    groups: int = 1,
    return_rstd: bool = False,
) -> Any:
    """LayerNorm over the last dimension (Ba et al., Layer Normalization, arXiv 1607.06450, section 3).

        h = x + residual
        y = (h - mean(h)) * rstd * (weight_offset + weight) + bias,   rstd = 1 / sqrt(var(h) + eps)

    The variance is the mean of the squared distances from the mean, not a difference of two large numbers.
    Arguments, results and errors are those of :func:`rms_norm`.
    """
    form = (LAYER, eps, weight_offset, groups, gate_first)
    return _call("layer_norm", x, (weight, bias, residual, gate), form, True, return_rstd)


def crms_norm(
    x: torch.Tensor,
    weight: Maybe = None,
    bias: Maybe = None,
    eps: float = 1e-6,
    residual: Maybe = None,
    *,
    gate: Maybe = None,
    gate_first: bool = False,
    weight_offset: float = 0.0,
    groups: int = 1,
    return_rstd: bool = False,
) -> Any:
    """CRMSNorm (Jiang et al., Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv 2305.14858, section 3.2):
    the RMSNorm of a vector of zero mean whose last coordinate is not stored.

        h = x + residual,   d = features + 1
        rstd = 1 / sqrt((sum(h ** 2) + sum(h) ** 2) / d + eps)
        y = h * rstd * (weight_offset + weight) + bias

    In an orthonormal basis lengths are kept, and :func:`rms_norm` is what computes it. Arguments, results
    and errors are those of :func:`rms_norm`.
    """
    form = (CRMS, eps, weight_offset, groups, gate_first)
    return _call("crms_norm", x, (weight, bias, residual, gate), form, True, return_rstd)


def row_scale(x: torch.Tensor, eps: float = 1e-6, residual: Maybe = None, *, groups: int = 1) -> Any:
    """The factors of an RMSNorm alone, ``1 / sqrt(mean(h ** 2) + eps)`` with ``h = x + residual``.

    A product that reads the norm can read h in its place and multiply its rows with them afterwards, so that
    the normalized values are never written. Returns ``rstd`` in float32, or ``(h, rstd)`` with a residual;
    shapes and errors are those of :func:`rms_norm`.
    """
    results = _call("row_scale", x, (None, None, residual, None), (RMS, eps, 0.0, groups, False), False, True)
    return results if residual is not None else results[0]


def _call(
    where: str,
    x: torch.Tensor,
    tensors: tuple[Maybe, Maybe, Maybe, Maybe],
    form: tuple[int, float, float, int, bool],
    wants_value: bool,
    wants_rstd: bool,
) -> Any:
    _check(where, x, tensors, form[1], form[3])
    check_used(where, "weight_offset", form[2], "weight", tensors[0])
    check_used(where, "gate_first", form[4], "gate", tensors[3])
    arguments = (x, *tensors, *form)
    if takes_kernel(where, x):
        with on_device(x):
            y, total, _, rstd = operators.norm(*arguments, wants_value)
        rstd = rstd.view(x.shape[:-1] if form[3] == 1 else (*x.shape[:-1], form[3]))
    else:
        y, total, rstd = norm_reference(*arguments)
    results = [y] if wants_value else []
    results += [total] if tensors[2] is not None else []
    results += [rstd] if wants_rstd else []
    return results[0] if wants_value and len(results) == 1 else tuple(results)


def _check(
    where: str, x: torch.Tensor, tensors: tuple[Maybe, Maybe, Maybe, Maybe], eps: float, groups: int
) -> None:
    weight, bias, residual, gate = tensors
    check_rows(where, x)
    check_groups(where, x.shape[-1], groups)
    check_eps(where, eps)
    check_vector(where, "weight", weight, x.shape[-1], x)
    check_vector(where, "bias", bias, x.shape[-1], x)
    check_beside(where, "residual", residual, x, same_dtype=True)
    check_beside(where, "gate", gate, x, same_dtype=False)
