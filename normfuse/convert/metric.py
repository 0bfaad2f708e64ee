"""What a metric of the user says of a model, as a number or an error that a person understands."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import nn

from normfuse.errors import InputError

__all__ = ["Metric", "check_before", "check_metric", "measured"]

Metric = Callable[[nn.Module], float]


def check_metric(metric: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        InputError: naming what came.
    """
    if metric is not None and not callable(metric):
        raise InputError(f"metric= is a function of the model, not {type(metric).__name__}")


def measured(metric: Metric, model: nn.Module, which: str) -> float:
    """The metric of a model, which people call ``which``.

    Raises:
        InputError: where the metric fails, or returns anything but one real number.
    """
    try:
        with torch.no_grad():
            found: Any = metric(model)
    except Exception as error:
        raise InputError(
            f"metric= fails on {which}: {type(error).__name__}: {error}; the model is unchanged"
        ) from error
    number = found.item() if _is_scalar(found) else found
    if not isinstance(number, Real):
        raise InputError(f"metric= returns {_described(found)} for {which}; return one number")
    return float(number)


def check_before(value: float) -> None:
    """Refuse a metric that has no value for the given model: nothing could be compared with it.

    Raises:
        InputError: saying so.
    """
    if math.isnan(value):
        raise InputError("metric= returns nan for the given model; return a number that can be compared")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return "None" if value is None else f"{value!r}, a {type(value).__name__}"
