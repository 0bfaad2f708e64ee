"""What is planned for a folder, and what is known of it when plans are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from normfuse.checkpoint.changes import Changes
from normfuse.checkpoint.names import Names
from normfuse.checkpoint.outlines import Small
from normfuse.checkpoint.source import Folder
from normfuse.folding import Recipe
from normfuse.report import Report

__all__ = ["Case", "Made", "MismatchError", "Plan"]


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
    its layer. ``filled`` have one entry everywhere, which does nothing. ``is_plain`` says that the class
    itself computes the same with these files, ``centres_input`` that what the input embedding returns has no
    mean.
    """

    model_class: str
    changes: Changes
    report: Report
    made: dict[str, Made] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    is_plain: bool = True
    centres_input: bool = False


class MismatchError(Exception):
    """The modules do not do what the rewritten graph does."""


@dataclass(frozen=True)
class Case:
    """What all attempts share."""

    folder: Folder
    make: Callable[[], torch.nn.Module]
    model: Any
    names: Names
    inputs: Mapping[str, Any]
    small: Small
