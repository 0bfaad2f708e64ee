"""Which norms of a model become something else, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from normfuse.convert.affine import Affine, affine_of, is_norm
from normfuse.convert.targets import made
from normfuse.errors import InputError, OptionError

__all__ = ["Entry", "Plan", "check_only", "plan_for"]

Wrap = Callable[[nn.Module, nn.Module], nn.Module]


@dataclass(frozen=True)
class Entry:
    """A norm: where it is, its class, and what it becomes or why it stays."""

    name: str
    kind: str
    becomes: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}): {self.becomes or self.reason}"


@dataclass
class Plan:
    """New modules for old ones, and a line for each norm."""

    replacements: dict[nn.Module, nn.Module] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    converted: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)
    sought: str = "module with Norm in its name"

    def check(self, what: str) -> None:
        """Refuse a plan that changes nothing.

        Raises:
            InputError: with the reasons of the first norms.
        """
        if self.converted:
            return
        shown = "; ".join(str(entry) for entry in self.kept[:3]) or f"it has no {self.sought}"
        raise InputError(f"no norm of the model can be {what}: {shown}")


def plan_for(
    model: nn.Module,
    to: str,
    options: Mapping[str, Any],
    only: Sequence[str] | None,
    also: Sequence[type[nn.Module]],
    wrap: Wrap | None = None,
) -> Plan:
    """A new layer for each norm over the last axis whose name one of the patterns ``only`` matches."""
    check_only(only)
    plan, held = Plan(), Counter(_identities(model))
    like = next(model.parameters(), torch.zeros(()))
    for name, module in list(model.named_modules()):
        if not is_norm(module) and not isinstance(module, tuple(also)):
            continue
        found = _decide(name, module, only, tuple(also), held)
        kind = type(module).__name__
        if isinstance(found, str):
            plan.kept.append(Entry(name or "the model", kind, reason=found))
            continue
        layer = made(to, found, found.weight if found.weight is not None else like, options)
        plan.layers[name] = layer
        plan.replacements[module] = layer if wrap is None else wrap(module, layer)
        plan.converted.append(Entry(name, kind, becomes=to))
    return plan


def check_only(only: object) -> None:
    """Refuse one pattern in the place of a list, whose letters would be taken for patterns.

    Raises:
        OptionError: naming the list that is meant.
    """
    if isinstance(only, str):
        raise OptionError(f"only is a list of patterns: write only=[{only!r}]")


def _identities(model: nn.Module) -> list[int]:
    return [id(p) for m in model.modules() for p in m.parameters(recurse=False)]


def _decide(
    name: str,
    module: nn.Module,
    only: Sequence[str] | None,
    also: tuple[type[nn.Module], ...],
    held: Mapping[int, int],
) -> Affine | str:
    """What is to be taken over, or why the module stays."""
    if not name:
        return "it is the model itself, and a module cannot replace itself; wrap it in nn.Sequential"
    if only is not None and not any(fnmatchcase(name, pattern) for pattern in only):
        return "only leaves it out"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "hooks are registered on it, which would be lost"
    if hasattr(module, "parametrizations"):
        return "its weight is parametrized"
    found = affine_of(module, also)
    if isinstance(found, Affine) and any(_is_shared(p, held) for p in module.parameters()):
        return "its weight is also another module's, which copying would undo"
    return found


def _is_shared(parameter: Tensor, held: Mapping[int, int]) -> bool:
    return held[id(parameter)] > 1
