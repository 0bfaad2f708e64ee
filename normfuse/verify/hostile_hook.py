"""Inputs that norms are known to suffer from, for the verification of whole programs.

This module is the one place that says what they are: everything else asks :func:`hostile_values`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from normfuse.verify.random_inputs import random_values
from normfuse.verify.signature import Leaf
from normfuse.verify.sizes import Sizes

__all__ = ["hostile_values"]

Change = Callable[[Tensor], Tensor]

_FLOATING: dict[str, Change] = {
    "zeros": torch.zeros_like,
    "constant rows": lambda x: torch.full_like(x, 3.0),
    "large mean, tiny variance": lambda x: 1e3 + 1e-2 * x,
    "tiny": lambda x: x * 1e-6,
    "subnormal": lambda x: x * (4 * torch.finfo(x.dtype).smallest_normal),
    "huge": lambda x: x * 1e4,
    "one entry infinite": lambda x: _with_last(x, float("inf")),
    "one entry not a number": lambda x: _with_last(x, float("nan")),
}


def hostile_values(leaves: Sequence[Leaf], sizes: Sizes, seed: int) -> Iterator[tuple[str, list[Any]]]:
    """Names and values, one for each leaf; integers stay within the tables that they index."""
    base = random_values(leaves, sizes, seed)
    if any(leaf.is_floating for leaf in leaves):
        for name, change in _FLOATING.items():
            yield name, [change(v) if leaf.is_floating else v for leaf, v in zip(leaves, base, strict=True)]
    if any(leaf.bound for leaf in leaves):
        for name in ("first rows only", "last rows only"):
            last = name.startswith("last")
            yield name, [_filled(leaf, v, last) for leaf, v in zip(leaves, base, strict=True)]


def _filled(leaf: Leaf, value: Any, last: bool) -> Any:
    if not leaf.bound:
        return value
    return torch.full_like(value, leaf.bound - 1 if last else 0)


def _with_last(value: Tensor, entry: float) -> Tensor:
    made = value.clone()
    made.view(-1)[-1:] = entry
    return made
