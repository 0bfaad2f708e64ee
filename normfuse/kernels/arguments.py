"""Whether the tensors of a call fit together: one sentence says what does not."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from normfuse.errors import InputError

__all__ = [
    "DTYPES",
    "WIDEST",
    "check_beside",
    "check_eps",
    "check_groups",
    "check_rows",
    "check_tensor",
    "check_used",
    "check_vector",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Values that share statistics, at most.
WIDEST = 65536


def check_tensor(where: str, name: str, value: object) -> None:
    """A tensor, and not a number, a list or None."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{where}: {name} is a {type(value).__name__}; pass a tensor")


def check_rows(where: str, x: torch.Tensor) -> None:
    """``x`` has a last dimension that can be normalized."""
    check_tensor(where, "x", x)
    if x.dtype not in DTYPES:
        raise InputError(f"{where} has no kernel for {_name(x.dtype)}; use float32, bfloat16 or float16")
    if x.dim() == 0:
        raise InputError(
            f"{where}: x has no dimensions; the last one is normalized, so it needs at least one"
        )
    if x.shape[-1] == 0:
        raise InputError(f"{where}: x has the shape {tuple(x.shape)}; the last dimension must not be empty")


def check_groups(where: str, features: int, groups: int) -> None:
    """Groups of equal width, none wider than the kernels go."""
    if groups < 1 or features % groups:
        raise InputError(f"{where}: {features} features cannot be split into {groups} groups of equal width")
    if features // groups > WIDEST:
        raise InputError(
            f"{where}: {features // groups} values share statistics; the kernels go up to {WIDEST}"
        )


def check_eps(where: str, eps: Any) -> None:
    """Positive in float32, so that a row of zeros has a finite result."""
    is_number = isinstance(eps, (Real, torch.SymFloat))
    if not is_number:
        raise InputError(f"{where}: eps is a {type(eps).__name__}; it must be a positive number")
    if not (torch.finfo(torch.float32).tiny <= eps < math.inf):
        raise InputError(f"{where}: eps is {eps}; it must be a positive number that float32 can hold")


def check_used(where: str, name: str, value: float, what: str, tensor: torch.Tensor | None) -> None:
    """An argument that says something about a tensor needs the tensor."""
    if value and tensor is None:
        raise InputError(f"{where}: {name} is {value} and there is no {what}; pass one or leave {name} out")


def check_vector(where: str, name: str, value: torch.Tensor | None, count: int, x: torch.Tensor) -> None:
    """One number a feature, or None."""
    if value is None:
        return
    check_tensor(where, name, value)
    if tuple(value.shape) != (count,):
        raise InputError(f"{where}: {name} has the shape {tuple(value.shape)}; it must be ({count},)")
    _check_place(where, name, value, x)


def check_beside(
    where: str, name: str, value: torch.Tensor | None, x: torch.Tensor, same_dtype: bool
) -> None:
    """A tensor of the shape of ``x``, or None."""
    if value is None:
        return
    check_tensor(where, name, value)
    if value.shape != x.shape:
        raise InputError(
            f"{where}: {name} has the shape {tuple(value.shape)}, x {tuple(x.shape)}; they must be equal"
        )
    if same_dtype and value.dtype != x.dtype:
        raise InputError(f"{where}: {name} is {_name(value.dtype)}, x {_name(x.dtype)}; convert one of them")
    _check_place(where, name, value, x)


def _check_place(where: str, name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    if value.dtype not in DTYPES:
        raise InputError(f"{where}: {name} is {_name(value.dtype)}; use float32, bfloat16 or float16")
    if value.device != x.device:
        raise InputError(f"{where}: {name} is on {value.device}, x on {x.device}; move one of them")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
