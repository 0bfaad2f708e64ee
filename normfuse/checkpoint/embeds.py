"""Embeddings that a caller passes in place of ids: they lose their mean, where those of the model have none.

    y = model(inputs_embeds=e)   computes as with   e - mean(e),   as the centred table gives it

So does every part that takes them and has such a table: the decoder of a translator, the model below a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from inspect import signature
from typing import Any

import torch

from normfuse.rms_norm import centred

__all__ = ["centre_given", "centred_inputs"]

_GIVEN = "inputs_embeds"


def centred_inputs(model: torch.nn.Module, tables: Iterable[str]) -> tuple[str, ...]:
    """The paths of the modules that take embeddings in place of what one of these tables returns."""
    found = [model.get_submodule(path) for path in tables]
    parts = ((path, module, _table(module)) for path, module in model.named_modules())
    return tuple(path for path, part, table in parts if any(table is one for one in found) and _takes(part))


def _table(module: torch.nn.Module) -> torch.nn.Module | None:
    try:
        table = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # several inputs, or none that is looked up
        return None
    return table if isinstance(table, torch.nn.Embedding) else None


def _takes(module: torch.nn.Module) -> bool:
    return _GIVEN in signature(module.forward).parameters


def centre_given(model: torch.nn.Module, paths: Iterable[str]) -> None:
    """Let these modules take the mean from embeddings that they are given.

    Raises:
        AttributeError: where there is no such module.
        TypeError: where it takes no embeddings.
    """
    for path in paths:
        module = model.get_submodule(path)
        if not _takes(module):
            raise TypeError(f"{path or type(module).__name__} takes no {_GIVEN}")
        place = [*signature(module.forward).parameters].index(_GIVEN)
        module.register_forward_pre_hook(partial(_centre, place), with_kwargs=True)


def _centre(
    place: int, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(kwargs.get(_GIVEN), torch.Tensor):
        return args, {**kwargs, _GIVEN: centred(kwargs[_GIVEN])}
    if len(args) > place and isinstance(args[place], torch.Tensor):
        return (*args[:place], centred(args[place]), *args[place + 1 :]), kwargs
    return args, kwargs
