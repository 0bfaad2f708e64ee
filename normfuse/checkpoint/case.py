"""What is known of a folder when plans are made: its model without values, names, inputs, small tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from normfuse.checkpoint.architecture import class_of, config_of, empty_model
from normfuse.checkpoint.example import example_inputs
from normfuse.checkpoint.names import Names, check_complete, names_of, tied
from normfuse.checkpoint.outlines import Small
from normfuse.checkpoint.source import Folder

__all__ = ["Case", "case_of", "untied"]


@dataclass(frozen=True)
class Case:
    """What all attempts share. ``make`` builds the model, on the meta device, another time."""

    folder: Folder
    make: Callable[[], torch.nn.Module]
    model: Any
    names: Names
    inputs: Mapping[str, Any]
    small: Small


def case_of(folder: Folder) -> Case:
    """The model of a folder as its class has it.

    Raises:
        InputError: for a folder whose class is not known or whose tensors do not fit it.
    """
    model_class = class_of(folder.config, folder.path)
    config, dtype = config_of(model_class, folder.path), folder.dtype

    def make() -> torch.nn.Module:
        return empty_model(model_class, config, dtype, folder.path)

    model = make()
    names = names_of(model, folder)
    check_complete(model, names, folder.stored)
    return Case(folder, make, model, names, example_inputs(model, dtype), _small(folder, names))


def untied(case: Case) -> Case | None:
    """The same model with a tensor of its own for each name; None where none has two names."""
    if all(len(names) == 1 for names in case.names.same.values()):
        return None
    config = copy.deepcopy(case.model.config)
    config.tie_word_embeddings = False

    def make() -> torch.nn.Module:
        return empty_model(type(case.model), config, case.folder.dtype, case.folder.path)

    model = make()
    names = Names({name: case.names.of(name) for name in case.names.same}, case.names.merged, tied(model))
    return Case(case.folder, make, model, names, case.inputs, _small(case.folder, names))


def _small(folder: Folder, names: Names) -> Small:
    """The vectors of the model: the values of norms and biases, on which decisions rest."""
    held: dict[str, torch.Tensor] = {}

    def small(name: str) -> torch.Tensor | None:
        found = names.of(name) if name in names.same else ()
        if not found or len(folder.stored[found[0]].shape) > 1:
            return None
        return held.setdefault(found[0], folder.tensor(found[0]))

    return small
