"""Random inputs of a program: like the stored ones where there are some, indices within their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normfuse.verify.signature import Leaf
from normfuse.verify.sizes import Sizes, concrete

__all__ = ["random_values"]

#: Fewer distinct values than this are choices (a mask), not measurements.
_FEW = 3


def random_values(leaves: Sequence[Leaf], sizes: Sizes, seed: int) -> list[Any]:
    """One value for each leaf; equal seeds give equal values."""
    generator = torch.Generator().manual_seed(seed)
    return [_value(leaf, sizes, generator) for leaf in leaves]


def _value(leaf: Leaf, sizes: Sizes, generator: torch.Generator) -> Any:
    if leaf.shape is None or leaf.dtype is None:
        return leaf.example
    shape = concrete(leaf, sizes)
    made = _entries(leaf, shape, generator)
    return made.to(device=leaf.device, dtype=leaf.dtype)


def _entries(leaf: Leaf, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if leaf.bound is not None:
        return torch.randint(max(leaf.bound, 1), shape, generator=generator)
    example = leaf.example.detach().cpu().flatten() if isinstance(leaf.example, Tensor) else None
    if leaf.is_floating and (example is None or _is_measured(example)):
        mean, spread = (0.0, 1.0) if example is None else _moments(example)
        return mean + spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    if example is None or not example.numel():
        return torch.zeros(shape)
    return example[torch.randint(example.numel(), shape, generator=generator)]


def _is_measured(example: Tensor) -> bool:
    """Whether the entries are ordinary numbers, as opposed to a mask or a flag."""
    if not example.numel():
        return True
    ordinary = bool(torch.isfinite(example).all()) and float(example.double().abs().max()) < 1e6
    return ordinary and (example.numel() < _FEW or example.unique().numel() >= _FEW)


def _moments(example: Tensor) -> tuple[float, float]:
    values = example.double()
    if not values.numel():
        return 0.0, 1.0
    spread = float(values.std(correction=0))
    return float(values.mean()), spread if spread > 0 else 1.0
