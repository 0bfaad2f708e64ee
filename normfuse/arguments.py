"""Whether what is given fits what a model's ``forward`` takes, told before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from normfuse.errors import InputError

__all__ = ["bound_arguments", "require_values"]


def bound_arguments(
    program: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None, name: str
) -> dict[str, Any]:
    """``args`` and ``kwargs`` by the names of the parameters that take them; ``name`` is for the message.

    What tells nothing about its parameters, as built-in functions do, takes all that is given: ``{}``.

    Raises:
        InputError: when a parameter gets no value, or a value has no parameter.
    """
    try:
        signature = inspect.signature(program.forward if isinstance(program, torch.nn.Module) else program)
    except ValueError:
        return {}
    try:
        return dict(signature.bind(*args, **(kwargs or {})).arguments)
    except TypeError as error:
        raise InputError(f"{name} does not take these inputs: {error}") from error


def require_values(tensors: Iterable[tuple[str, object]]) -> None:
    """Refuse tensors without values, by their names, where a model is about to run.

    Raises:
        InputError: for one on the meta device.
    """
    for name, value in tensors:
        if isinstance(value, torch.Tensor) and value.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load the model first")
