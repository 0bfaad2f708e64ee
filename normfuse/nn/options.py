"""Options of layers: checked when a layer is made, shown by its ``repr``."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from normfuse.errors import OptionError

__all__ = [
    "check_count", "check_eps", "check_groups", "check_module", "check_number", "check_share", "listed",
]  # fmt: skip


def check_count(layer: nn.Module, name: str, value: Any, least: int = 1) -> int:
    """``value`` where it is a whole number, and large enough.

    Raises:
        OptionError: naming the layer and the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{_name(layer)}: {name} is a whole number of at least {least}, not {value!r}")
    return value


def check_groups(layer: nn.Module, num_groups: Any, channels: int) -> int:
    """``num_groups`` where it is a count that divides the channels.

    Raises:
        OptionError: saying which it is not.
    """
    check_count(layer, "num_groups", num_groups)
    if channels % num_groups:
        raise OptionError(f"{_name(layer)}: {num_groups} groups do not divide {channels} channels")
    return int(num_groups)


def check_eps(layer: nn.Module, eps: Any) -> float:
    """``eps`` where it is positive: a channel of zeros divides by its root.

    Raises:
        OptionError: saying so.
    """
    if not _is_number(eps) or not 0.0 < eps < math.inf:
        raise OptionError(
            f"{_name(layer)}: eps is a number above zero, not {eps!r}: values that are all alike divide by it"
        )
    return float(eps)


def check_share(layer: nn.Module, name: str, value: Any) -> float:
    """``value`` where it lies in [0, 1].

    Raises:
        OptionError: naming the layer and the option.
    """
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise OptionError(f"{_name(layer)}: {name} is a number from 0 to 1, not {value!r}")
    return float(value)


def check_number(layer: nn.Module, name: str, value: Any) -> float:
    """``value`` where it is a finite number.

    Raises:
        OptionError: naming the layer and the option.
    """
    if not _is_number(value) or not math.isfinite(value):
        raise OptionError(f"{_name(layer)}: {name} is a finite number, not {value!r}")
    return float(value)


def check_module(layer: nn.Module, name: str, value: Any) -> nn.Module:
    """``value`` where it is a module.

    Raises:
        OptionError: naming the layer and the option.
    """
    if not isinstance(value, nn.Module):
        raise OptionError(f"{_name(layer)}: {name} is a module, not {value!r}")
    return value


def listed(layer: nn.Module, size: str, *names: str) -> str:
    """The size and then options by their names, as every ``extra_repr`` has them."""
    options = (f"{name}={getattr(layer, name)!r}" for name in names)
    return ", ".join([str(getattr(layer, size)), *options])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(layer: nn.Module) -> str:
    return type(layer).__name__
