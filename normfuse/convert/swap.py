"""Modules that take the places of others in a model, and make room again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from normfuse.errors import InputError

__all__ = ["Swap"]


class Swap:
    """New modules for old ones, wherever the model holds these.

    ``nn.TransformerEncoderLayer`` has a path for evaluation that reads weights of its norms and computes
    LayerNorm, whatever the norms are; it is switched off meanwhile.
    """

    def __init__(self, model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
        self.is_installed = False
        self._places = [
            (parent, name, child, replacements[child])
            for parent in model.modules()
            for name, child in parent._modules.items()
            if child is not None and child in replacements
        ]
        changed = {parent for parent, *_ in self._places}
        self._switches = list(_fast_paths(model, changed))

    def install(self) -> None:
        """Put the new modules in, with the training flags of the old ones.

        Raises:
            InputError: where something else stands there by now, which would be lost.
        """
        if self.is_installed:
            return
        self._check([(parent, name, old) for parent, name, old, _ in self._places])
        for parent, name, old, new in self._places:
            new.train(old.training)
            setattr(parent, name, new)
        self._set_switches(2)
        self.is_installed = True

    def remove(self) -> None:
        """Put the old modules back.

        Raises:
            InputError: where something else stands in the place of a new one by now.
        """
        if not self.is_installed:
            return
        self._check([(parent, name, new) for parent, name, _, new in self._places])
        for parent, name, old, new in self._places:
            old.train(new.training)
            setattr(parent, name, old)
        self._set_switches(3)
        self.is_installed = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The new modules for a while."""
        self.install()
        try:
            yield
        finally:
            self.remove()

    def _check(self, expected: list[tuple[nn.Module, str, nn.Module]]) -> None:
        for parent, name, module in expected:
            there = parent._modules.get(name)
            if there is not module:
                raise InputError(
                    f"{name} of {type(parent).__name__} is no longer the {type(module).__name__} that it "
                    f"was, but {type(there).__name__}, which would be lost; undo later changes first, or "
                    "begin again"
                )

    def _set_switches(self, which: int) -> None:
        for switch in self._switches:
            setattr(switch[0], switch[1], switch[which])


def _fast_paths(model: nn.Module, changed: set[nn.Module]) -> Iterator[tuple[nn.Module, str, Any, Any]]:
    """Module, attribute, what switches its fast path off, and what it was."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and module in changed:
            yield module, "activation_relu_or_gelu", 0, module.activation_relu_or_gelu
        elif isinstance(module, nn.TransformerEncoder) and changed.intersection(module.layers):
            yield module, "use_nested_tensor", False, module.use_nested_tensor
