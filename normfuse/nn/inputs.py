"""What a call of a layer takes: shapes, dtypes and masks, and enough values for a variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normfuse.errors import InputError

__all__ = ["check_channels", "check_last", "check_several", "check_shape", "check_tensor", "check_tokens"]


def check_last(layer: nn.Module, x: Tensor, size: int) -> None:
    """Refuse what is not (..., size).

    Raises:
        InputError: saying what came and what is asked for.
    """
    check_shape(layer, x, f"(..., {size})", x.dim() > 0 and x.shape[-1] == size)


def check_tokens(layer: nn.Module, x: Tensor, pad_mask: Tensor | None, channels: int) -> None:
    """Refuse what is not (..., channels) with two axes at least, and a mask that does not fit.

    Raises:
        InputError: saying what came and what is asked for.
    """
    wanted = f"(..., {channels}), channels last, with two axes at least"
    check_shape(layer, x, wanted, x.dim() > 1 and x.shape[-1] == channels)
    if pad_mask is None:
        return
    check_tensor(layer, "pad_mask", pad_mask)
    if pad_mask.dtype != torch.bool:
        raise InputError(f"{_name(layer)} takes a bool pad_mask, True at padding, not {pad_mask.dtype}")
    if pad_mask.shape != x.shape[:-1]:
        raise InputError(
            f"{_name(layer)} takes a pad_mask with one entry for each token, of shape {tuple(x.shape[:-1])}, "
            f"not {tuple(pad_mask.shape)}"
        )


def check_tensor(layer: nn.Module, name: str, value: object) -> None:
    """Refuse what is no tensor beside the input.

    Raises:
        InputError: naming it, and what came.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{_name(layer)} takes a tensor as its {name}, not a {type(value).__name__}")


def check_channels(layer: nn.Module, x: Tensor, channels: int, ranks: range = range(2, 6)) -> None:
    """Refuse what is not (N, channels, ...) with one of these numbers of axes.

    Raises:
        InputError: saying what came and what is asked for.
    """
    axes = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
    wanted = f"(N, {channels}, ...), channels on axis 1, with {axes} axes"
    check_shape(layer, x, wanted, x.dim() in ranks and x.shape[1] == channels)


def check_shape(layer: nn.Module, x: Tensor, wanted: str, fits: bool) -> None:
    """Refuse what does not fit, and what is not floating-point.

    Raises:
        InputError: saying what came and what is asked for.
    """
    if not fits:
        raise InputError(f"{_name(layer)} takes an input of shape {wanted}, not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise InputError(f"{_name(layer)} takes floating-point inputs, not {x.dtype}; convert with x.float()")


def check_several(layer: nn.Module, count: int, where: str) -> None:
    """Refuse a variance of fewer than two values.

    Raises:
        InputError: where there are too few.
    """
    if count < 2:
        raise InputError(
            f"{_name(layer)} needs two values or more in each {where} for a variance, and has {count}; "
            "use a larger batch or image"
        )


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
