"""What the owner of a model calls its modules: found by identity, and not by the way that Dynamo took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Graph

from normfuse.backends.owners import compiling_scope
from normfuse.ir.location import WRAPPERS

__all__ = ["name_modules"]


def name_modules(graph: Graph) -> None:
    """Write down, for every node, the path of its module as ``named_modules`` of the model gives it.

    A module that the model holds in another way keeps what Dynamo says of it, unless it has a name of its
    own, as layers of Keras have.
    """
    scope = compiling_scope() or {}
    names = {key: name for root in _roots(scope.get("L", {})) for key, name in _named(root, "", set())}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            continue
        key, (text, _) = list(stack.items())[-1]
        identity = str(key).split("@", maxsplit=1)[0]
        name = names[identity] if identity in names else _own_name(str(text), scope)
        if name is not None:
            node.meta["module_path"] = name


def _roots(variables: Mapping[str, Any]) -> Iterator[torch.nn.Module]:
    for value in variables.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, torch.nn.Module):
                yield one


def _named(module: torch.nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Each module once; what a wrapper holds has the wrapper's place."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield str(id(module)), path
    passes_on = type(module).__name__ in WRAPPERS and type(module).__module__.startswith("torch.")
    for name, child in module.named_children():
        inside = path if passes_on else f"{path}.{name}".lstrip(".")
        yield from _named(child, inside, seen)


def _own_name(text: str, scope: dict[str, Any]) -> str | None:
    try:
        module = eval(text, dict(scope))  # an expression that Dynamo made
    except Exception:
        return None
    path = getattr(module, "path", None) or getattr(module, "name", None)
    return path.replace("/", ".") if isinstance(path, str) else None
