"""What is planned for a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from normfuse.checkpoint.changes import Changes
from normfuse.folding import Recipe
from normfuse.report import Report

__all__ = ["Made", "MismatchError", "Plan"]


@dataclass(frozen=True)
class Made:
    """A tensor that is computed from tensors of the files; ``name`` is what it is in the model."""

    name: str
    recipe: Recipe
    sources: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass
class Plan:
    """``made`` and ``filled`` are tensors of the files by name, those that are new among them.

    ``beside`` gives for each new one a tensor whose file it goes to, and ``biases`` its name by the path of
    its layer; ``homes`` says which biases stand in the place of that of a norm that is gone. ``filled`` have
    one entry everywhere, which does nothing. ``is_plain`` says that the class itself computes the same with
    these files, ``centred_inputs`` are the modules whose ``inputs_embeds`` lose their mean.

    Of a model that becomes one of another class, ``config`` is its configuration, ``taken`` are the tensors
    that stay as they are, each with its name in the files that are read, and ``shapes`` those of all tensors,
    with their dtypes. In the same class what is neither made nor filled stays under its name.
    """

    model_class: str
    changes: Changes
    report: Report
    made: dict[str, Made] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    is_plain: bool = True
    centred_inputs: tuple[str, ...] = ()
    config: Any = None
    taken: dict[str, str] | None = None
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)


class MismatchError(Exception):
    """The modules do not do what the rewritten graph does."""
