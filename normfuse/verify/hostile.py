"""Inputs on which norms go wrong first.

A generator takes a floating tensor as an example and returns another one. What a program was captured with
says how its inputs look, so a hostile set replaces the floating inputs by one generator and draws integers
anew: below the number of rows of the table that they index where that is known, and from those that occur
where it is not, so they stay inside of every table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["GENERATORS", "RESIZING", "hostile_inputs"]

Generator = Callable[[Tensor, torch.Generator], Tensor]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _large_mean(like: Tensor, generator: torch.Generator) -> Tensor:
    """A mean of 1000 and a variance of 1e-6: all that a norm wants to see cancels."""
    return 1e3 + 1e-3 * _normal(like, generator)


def _constant_rows(like: Tensor, generator: torch.Generator) -> Tensor:
    """No variance at all: eps alone decides."""
    drawn = _normal(like, generator)
    return drawn[..., :1].expand(drawn.shape) if drawn.dim() else drawn


def _denormals(like: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(like, generator) * torch.finfo(like.dtype).smallest_normal / 16


def _of_size(size: float) -> Generator:
    def make(like: Tensor, generator: torch.Generator) -> Tensor:
        """Numbers of this size, or what is left below the largest one of the dtype."""
        return _normal(like, generator) * min(size, torch.finfo(like.dtype).max / 64)

    return make


def _zeros(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float64)


def _with(value: float) -> Generator:
    def make(like: Tensor, generator: torch.Generator) -> Tensor:
        """One element in eight of the first half, the first one among them; what the rest gives is judged."""
        drawn = _normal(like, generator)
        chosen = torch.rand(like.numel(), generator=generator) < 1 / 8
        chosen[-(-like.numel() // 2) :] = False
        chosen[:1] = True
        return drawn.masked_fill(chosen.view(like.shape), value)

    return make


def _one_row(like: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(like[:1] if like.dim() else like, generator)


def _zero_batch(like: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(like[:0] if like.dim() else like, generator)


GENERATORS: dict[str, Generator] = {
    "large mean": _large_mean,
    "constant rows": _constant_rows,
    "denormals": _denormals,
    "1e-6": _of_size(1e-6),
    "1e4": _of_size(1e4),
    "1e30": _of_size(1e30),
    "zeros": _zeros,
    "inf": _with(float("inf")),
    "nan": _with(float("nan")),
}
"""Generators that keep the shape, by name."""

QUICK = ("large mean", "constant rows", "1e-6", "nan", "other integers", "first rows only", "last rows only")
"""Those that show most, and cost about as much as the programs need to run 16 times: every kind of loss is in
them once (cancellation, no variance, an eps that decides, what is not finite)."""

RESIZING: dict[str, Generator] = {"one row": _one_row, "zero batch": _zero_batch}
"""Generators that change the size of the first axis, for programs that allow it."""


def hostile_inputs(
    inputs: Sequence[object], seed: int = 0, resize: bool = False,
    bounds: Sequence[int | None] | None = None, names: Collection[str] | None = None,
) -> Iterator[tuple[str, list[object]]]:  # fmt: skip
    """Named input sets like ``inputs``: a floating tensor becomes a hostile one, other tensors are redrawn.

    ``bounds`` says for each input how many rows the table has that its integers index, where that is known;
    with such an input there are two sets more, of first and of last rows only. Without floating tensors there
    is one set of other integers besides. With ``resize`` the sets of another batch size come too; every
    tensor with an axis is cut along its first one then. ``names`` are those to make, all by default.
    """
    known = [None] * len(inputs) if bounds is None else list(bounds)
    named = {**GENERATORS, **(RESIZING if resize else {})}
    if not any(isinstance(i, Tensor) and i.is_floating_point() for i in inputs):
        named = {"other integers": _zeros, **(RESIZING if resize else {})}
    for number, (name, make) in enumerate(named.items()):
        if names is not None and name not in names:
            continue
        generator = torch.Generator().manual_seed(seed + number)
        pairs = zip(inputs, known, strict=True)
        yield name, [_replaced(value, bound, name, make, generator) for value, bound in pairs]
    if any(known):
        for name in (n for n in ("first rows only", "last rows only") if names is None or n in names):
            yield name, [_one_entry(v, b, name) for v, b in zip(inputs, known, strict=True)]


def _replaced(
    value: object, bound: int | None, name: str, make: Generator, generator: torch.Generator
) -> object:
    if not isinstance(value, Tensor) or value.is_complex():
        return value
    if value.is_floating_point():
        return make(value, generator).to(value.device, value.dtype)
    rows = {"one row": 1, "zero batch": 0}.get(name)
    kept = value if rows is None or not value.dim() else value[:rows]
    if bound:
        return torch.randint(bound, tuple(kept.shape), generator=generator).to(kept.device, kept.dtype)
    return kept.clone() if kept.dtype == torch.bool else _occurring(kept, value, generator)


def _one_entry(value: object, bound: int | None, name: str) -> object:
    if not isinstance(value, Tensor) or not bound:
        return value
    return torch.full_like(value, 0 if name == "first rows only" else bound - 1)


def _occurring(like: Tensor, held: Tensor, generator: torch.Generator) -> Tensor:
    """Integers of a shape, drawn from those that a tensor holds."""
    if not held.numel():
        return like.clone()
    chosen = torch.randint(0, held.numel(), tuple(like.shape), generator=generator)
    return held.reshape(-1)[chosen.to(held.device)]
