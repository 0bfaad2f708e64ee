"""Which tensor of the disk is which of the model: ``transformers`` renames and merges as it loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from normfuse.errors import InputError

__all__ = ["Names", "names_of", "tied"]


@dataclass(frozen=True)
class Names:
    """``disk`` gives, for a name in the model, the names of the files' tensors that are it, as they are.

    ``merged`` are names in the model that are put together from several tensors, or taken apart from one, and
    ``same`` lists, for each name, all names of one tied tensor, itself included.
    """

    disk: Mapping[str, tuple[str, ...]]
    merged: Mapping[str, str]
    same: Mapping[str, tuple[str, ...]]

    def of(self, name: str) -> tuple[str, ...]:
        """The tensors of the disk that are this one of the model, under any of its names."""
        return tuple(one for other in self.same[name] for one in self.disk.get(other, ()))

    def on_disk(self, name: str) -> tuple[str, ...]:
        """The same, where there are some.

        Raises:
            InputError: for a tensor that is missing or merged from others.
        """
        found = self.of(name)
        if not found:
            how = self.merged.get(name)
            why = "no file holds" if how is None else f"the files hold in other parts ({how})"
            raise InputError(f"{name} is a tensor of the model that {why}")
        return found


def tied(model: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """For each name of a tensor in the state dict, all names of the same tensor."""
    groups: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(value), []).append(name)
    return {name: tuple(names) for names in groups.values() for name in names}


def names_of(model: Any, stored: Iterable[str]) -> Names:
    """How ``transformers`` would find the tensors of this model in files that hold ``stored``."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    held = model.state_dict()
    disk: dict[str, list[str]] = {}
    merged: dict[str, str] = {}
    for name in stored:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        if pattern is None:
            disk.setdefault(target, []).append(name)
        else:
            merged.setdefault(target, name)
    return Names({k: tuple(v) for k, v in disk.items()}, merged, tied(model))


def check_complete(model: Any, names: Names, stored: Mapping[str, Any]) -> None:
    """Whether the files hold every tensor of the model, in its shape.

    Raises:
        InputError: naming one that is missing or of another shape.
    """
    held = model.state_dict()
    if names.merged:
        return  # which of them complete a merged tensor is known to transformers alone, which says so
    for name, value in held.items():
        found = names.of(name)
        if not found and not _may_be_missing(model, name):
            raise InputError(
                f"the files hold no {name}, which {type(model).__name__} has; is a shard missing?"
            )
        for one in found:
            if tuple(stored[one].shape) != tuple(value.shape):
                shapes = ("x".join(map(str, shape)) for shape in (stored[one].shape, value.shape))
                raise InputError("{} is {} in the files and {} by config.json".format(one, *shapes))


def _may_be_missing(model: Any, name: str) -> bool:
    import re

    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)
