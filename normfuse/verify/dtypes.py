"""float* -> float64, complex* -> complex128; integers and booleans keep their dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from normfuse.errors import VerificationError

__all__ = ["is_narrow", "is_real_number", "wide_dtype", "widen_inputs", "widen_tensor"]


def is_real_number(dtype: torch.dtype) -> bool:
    """Whether values of ``dtype`` are rounded numbers (floating or complex), as opposed to exact ones."""
    return dtype.is_floating_point or dtype.is_complex


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the oracle holds what the model holds in ``dtype``."""
    if dtype.is_floating_point:
        return torch.float64
    return torch.complex128 if dtype.is_complex else dtype


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether the oracle may not hold a value in ``dtype``."""
    return wide_dtype(dtype) != dtype


def widen_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A detached copy of ``tensor``, same shape and device, in the wide dtype; ``name`` is for the error."""
    if tensor.is_quantized or tensor.layout is not torch.strided:
        kind = "quantized" if tensor.is_quantized else f"stored as {tensor.layout}"
        raise VerificationError(f"{name} is {kind}; the float64 oracle takes strided tensors only.")
    if tensor.device.type == "mps" and is_real_number(tensor.dtype):
        raise VerificationError(f"{name} is on an MPS device, which has no float64; verify on the CPU.")
    try:
        return tensor.detach().to(wide_dtype(tensor.dtype), copy=True)
    except RuntimeError as error:
        reason = "its dtype is packed, or it was captured inside a vmap (eager flex_attention does that)"
        raise VerificationError(
            f"{name} ({tensor.dtype}) cannot be copied for the oracle: {reason}."
        ) from error


def widen_inputs(inputs: Sequence[object]) -> list[object]:
    """Widened copies of the tensors of a flat input list; an object that occurs twice is copied once."""
    copies: dict[int, object] = {}
    for position, value in enumerate(inputs):
        if id(value) not in copies:
            copies[id(value)] = _widen_input(value, f"Input {position}")
    return [copies[id(value)] for value in inputs]


def _widen_input(value: object, name: str) -> object:
    return widen_tensor(value, name) if isinstance(value, torch.Tensor) else value
