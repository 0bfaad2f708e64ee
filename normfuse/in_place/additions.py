"""Modules that are added to a model after ``normfuse.apply``, which judged the calls of the model as it was.

What was trained for the model as it was reads norms whose weights are elsewhere now, and writes a mean to
norms that remove none any more.
"""

from __future__ import annotations

import weakref
from functools import cache

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from normfuse.errors import InputError
from normfuse.warn import warn_user

__all__ = ["watch_additions"]

_MODELS: weakref.WeakKeyDictionary[nn.Module, _Watched] = weakref.WeakKeyDictionary()


class _Watched:
    """The modules that a model had, and whether some of its norms remove no mean."""

    def __init__(self, model: nn.Module, needs_centred: bool) -> None:
        self._known = weakref.WeakSet(model.modules())
        self._needs_centred, self._is_told = needs_centred, False

    def look(self, module: nn.Module, name: str, new: nn.Module) -> None:
        """Refuse an adapter, which stands around a module of the model or beside some; warn of all else."""
        if module not in self._known or not self._brings_weights(new):
            return
        is_adapter = any(part in self._known for part in new.modules()) or module._modules.get(name) is None
        what = f"{name}, a {type(new).__name__}, comes to a model after normfuse.apply"
        if self._needs_centred and is_adapter:
            raise InputError(
                f"{what}(norms='rms_norm'), whose norms remove no mean; add it before, or call undo() first"
            )
        if not self._is_told:
            self._is_told = True
            warn_user(
                f"{what}: it fits if it was made from the weights as they are now, or is trained from now "
                "on, and not if it was trained for the model as it was"
            )

    def _brings_weights(self, new: nn.Module) -> bool:
        had = {id(weight) for part in self._known for weight in part.parameters(recurse=False)}
        return any(id(weight) not in had for weight in new.parameters())


def watch_additions(model: nn.Module, needs_centred: bool | None) -> None:
    """Tell of modules with parameters that come to ``model`` from now on; with None not any more.

    With ``needs_centred`` there are norms that remove no mean, so an adapter is refused before anything
    changes. Whatever else is new is warned of, once.
    """
    _listen()
    if needs_centred is None:
        _MODELS.pop(model, None)
    else:
        _MODELS[model] = _Watched(model, needs_centred)


@cache
def _listen() -> None:
    """One hook for all models, which stays: PyTorch may be going through its hooks when a model ends."""

    def added(module: nn.Module, name: str, new: nn.Module | None) -> None:
        if new is not None:
            for one in list(_MODELS.values()):
                one.look(module, name, new)

    register_module_module_registration_hook(added)
