"""What norms of channels that lie last take: ``x`` (..., C), and a mask (...) that is True at padding."""

from __future__ import annotations

import torch
from torch import Tensor

from normfuse.errors import InputError, OptionError

__all__ = ["check_eps", "check_fraction", "check_input", "check_positive", "wide_dtype", "widen"]


def check_input(x: Tensor, pad_mask: Tensor | None, num_features: int, layer: str) -> None:
    """Refuse a wrong rank, dtype or number of channels, and a mask that does not fit.

    Raises:
        InputError: saying what came and what is asked for.
    """
    shape = tuple(x.shape)
    if x.dim() < 2 or shape[-1] != num_features:
        raise InputError(f"{layer} takes an input of shape (..., {num_features}), channels last, not {shape}")
    if not x.is_floating_point():
        raise InputError(f"{layer} takes floating-point inputs, not {x.dtype}; convert with x.float()")
    if pad_mask is None:
        return
    if pad_mask.dtype != torch.bool:
        raise InputError(f"pad_mask of {layer} is a bool tensor, True at padding, not {pad_mask.dtype}")
    if pad_mask.shape != x.shape[:-1]:
        raise InputError(
            f"pad_mask of {layer} has one entry for each token, shape {shape[:-1]}, "
            f"not {tuple(pad_mask.shape)}"
        )


def check_positive(value: int, name: str, layer: str, least: int = 1) -> int:
    """``value`` where it is a whole number, and large enough.

    Raises:
        OptionError: naming the option.
    """
    given: object = value
    if isinstance(given, bool) or not isinstance(given, int) or value < least:
        raise OptionError(f"{name} of {layer} is a whole number of at least {least}, not {value!r}")
    return value


def check_eps(eps: float, layer: str) -> float:
    """``eps`` where it is positive: a channel of zeros divides by its root.

    Raises:
        OptionError: saying so.
    """
    if not eps > 0.0:
        raise OptionError(f"eps of {layer} is positive, not {eps!r}: a channel of zeros divides by its root")
    return eps


def check_fraction(value: float, name: str, layer: str) -> float:
    """``value`` where it lies in [0, 1].

    Raises:
        OptionError: naming the option.
    """
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"{name} of {layer} lies between 0 and 1, and is not {value!r}")
    return value


def wide_dtype(x: Tensor) -> torch.dtype:
    """What statistics of ``x`` are computed in: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def widen(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in ``dtype``, with no operation where it is that already."""
    return value if value.dtype == dtype else value.to(dtype)
