"""Whether what is given fits what a model's ``forward`` takes, told before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from normfuse.errors import InputError

__all__ = ["bound_arguments"]


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
