"""What the layers ask of their inputs, and the precision in which they take statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfuse.errors import InputError, OptionError

__all__ = [
    "as_given",
    "check_channels",
    "check_last",
    "check_several",
    "per_channel",
    "positive",
    "widened",
]


def widened(x: Tensor) -> Tensor:
    """Half precision in float32, in which statistics are taken; other values as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_given(y: Tensor, x: Tensor) -> Tensor:
    """A result in the dtype of the input; no operation where it has that already."""
    return y if y.dtype == x.dtype else y.to(x.dtype)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """A vector with one entry for each channel, in the shape that broadcasts to (N, C, ...)."""
    return values.reshape(values.shape[0], *[1] * (x.dim() - 2))


def positive(layer: nn.Module, name: str, value: Any) -> int:
    """A count of one or more.

    Raises:
        OptionError: where it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{type(layer).__name__}: {name} is a count of one or more, not {value!r}")
    return value


def check_channels(layer: nn.Module, x: Tensor, channels: int, ranks: range = range(2, 6)) -> None:
    """Refuse what is not (N, C, ...) with these channels.

    Raises:
        InputError: what the input is, and what it should be.
    """
    _check_real(layer, x)
    if x.dim() not in ranks:
        wanted = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        raise InputError(f"{type(layer).__name__} takes {wanted} axes, (N, C, ...), not {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise InputError(
            f"{type(layer).__name__} has {channels} channels and its input has {x.shape[1]} on axis 1 "
            f"of {tuple(x.shape)}; move the channels there or build the layer for them"
        )


def check_last(layer: nn.Module, x: Tensor, size: int) -> None:
    """Refuse what has another size on the last axis.

    Raises:
        InputError: what the input is, and what it should be.
    """
    _check_real(layer, x)
    if x.dim() < 1 or x.shape[-1] != size:
        raise InputError(
            f"{type(layer).__name__} normalizes a last axis of size {size}, and its input is "
            f"{tuple(x.shape)}; move the features there or build the layer for them"
        )


def check_several(layer: nn.Module, count: int, where: str) -> None:
    """Refuse a variance of fewer than two values.

    Raises:
        InputError: where there are too few.
    """
    if count < 2:
        raise InputError(
            f"{type(layer).__name__} needs two values or more in each {where} for a variance, and has "
            f"{count}; use a larger batch or image"
        )


def _check_real(layer: nn.Module, x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(f"{type(layer).__name__} takes floating-point values, not {x.dtype}; convert them")
