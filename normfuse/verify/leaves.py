"""The leaves of whatever a model returns, by path: ``output[1]``, ``output.cache.layers[0].keys``.

Paths do not tell a dict from a dataclass nor a list from a tuple: a program that returns the same values in a
plain container still agrees with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

__all__ = ["SCALARS", "named_leaves", "tensor_leaves"]

SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def named_leaves(value: object) -> dict[str, object]:
    """Tensors and plain values in ``value``, by path, in order.

    Descends into mappings, sequences, dataclasses (``ModelOutput`` among them) and registered pytree nodes.
    Of any other object, for example a key-value cache, only the tensors that it holds are leaves.
    """
    return dict(_walk(value, "output", frozenset()))


def tensor_leaves(value: object) -> dict[str, torch.Tensor]:
    """The tensors among ``named_leaves``."""
    return {path: leaf for path, leaf in named_leaves(value).items() if isinstance(leaf, torch.Tensor)}


def _walk(value: Any, path: str, above: frozenset[int]) -> Iterator[tuple[str, object]]:
    if isinstance(value, (torch.Tensor, *SCALARS)):
        yield path, value
    elif id(value) not in above:
        above |= {id(value)}
        if (children := _children(value)) is None:
            yield from _tensors_of(value, path, above)
        else:
            for suffix, child in children:
                yield from _walk(child, path + suffix, above)


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with the path to it; None for an object that is no container."""
    if isinstance(value, Mapping):
        return [(_key(k), v) for k, v in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{k}", v) for k, v in zip(value._fields, value, strict=True)]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    if type(value) in pytree.SUPPORTED_NODES:
        nodes = pytree.tree_leaves(value, is_leaf=lambda v: v is not value)
        return [(f"[{i}]", v) for i, v in enumerate(nodes)]
    return None


def _tensors_of(value: Any, path: str, above: frozenset[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, (nn.Module, type)) or callable(value) or not hasattr(value, "__dict__"):
        return
    for name, child in vars(value).items():
        for leaf_path, leaf in _walk(child, f"{path}.{name}", above):
            if isinstance(leaf, torch.Tensor):
                yield leaf_path, leaf


def _key(key: object) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
