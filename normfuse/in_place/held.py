"""The tensors that a model holds, by the memory in which they lie, and which of them may be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["Held", "Place"]


class Place(NamedTuple):
    """Where a tensor lies: equal for all names and objects that stand for the same entries."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Place:
        memory = int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else id(tensor)
        stride = tensor.stride() if tensor.layout == torch.strided else ()
        return cls(memory, int(tensor.storage_offset()), tuple(tensor.shape), tuple(stride), tensor.dtype)


class Held:
    """The parameters and buffers of a model.

    ``fixed`` says of those that must stay as they are why; it only grows. What shares memory with another
    tensor that lies in it in another way is fixed from the beginning.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors: dict[Place, torch.Tensor] = {}
        self.names: dict[Place, str] = {}
        self.fixed: dict[Place, str] = {}
        for name, tensor in _named(model):
            place = Place.of(tensor)
            self.tensors.setdefault(place, tensor)
            self.names.setdefault(place, name)
        self._fix_what_overlaps(self.tensors)

    def may_change(self, place: Place) -> bool:
        """Whether a tensor is the model's own, and nothing is known that wants it as it is."""
        return place in self.tensors and place not in self.fixed

    def fix(self, reasons: Mapping[Place, str]) -> None:
        """Note tensors that must stay as they are."""
        for place, reason in reasons.items():
            self.fixed.setdefault(place, reason)

    def _fix_what_overlaps(self, places: Iterable[Place]) -> None:
        sharing: dict[int, list[Place]] = {}
        for place in places:
            sharing.setdefault(place.memory, []).append(place)
        for group in (g for g in sharing.values() if len(g) > 1):
            names = " and ".join(self.names[place] for place in group[:2])
            self.fix(dict.fromkeys(group, f"{names} lie in the same memory in different ways"))


def _named(model: torch.nn.Module) -> Iterable[tuple[str, Any]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
