"""Decisions that a model takes by comparing numbers, held as they were in its first run.

A mixture of experts sends a token where ``topk`` says, and a rounding decides between two that are close:
then nothing behind it can be compared. So the choices of the original are recorded, and every later run makes
the same ones with values of its own. What a run would have chosen itself is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Routes"]

aten = torch.ops.aten
#: Operators that return values with their indices; values are taken anew, at the indices that are held.
_CHOOSE = {
    aten.topk.default, aten.sort.default, aten.sort.stable, aten.max.dim, aten.min.dim,
}  # fmt: skip
#: Operators that return indices or booleans alone.
_DECIDE = {
    aten.argmax.default, aten.argmin.default, aten.bucketize.Tensor, aten.searchsorted.Tensor,
    aten.gt.Tensor, aten.gt.Scalar, aten.ge.Tensor, aten.ge.Scalar,
    aten.lt.Tensor, aten.lt.Scalar, aten.le.Tensor, aten.le.Scalar,
}  # fmt: skip


class Routes(TorchDispatchMode):
    """Records decisions while ``recording``, and gives the same ones to what runs under it afterwards.

    ``changed`` counts the decisions of the latest run that would have been others.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: dict[object, list[Tensor]] = defaultdict(list)
        self._seen: dict[object, int] = defaultdict(int)
        self._records = False
        self.changed = 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The first run."""
        self._records = True
        try:
            with self.run():
                yield
        finally:
            self._records = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """A run from its beginning."""
        self._seen.clear()
        self.changed = 0
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (func not in _CHOOSE and func not in _DECIDE) or not _is_of_floats(args):
            return result
        own = result[1] if func in _CHOOSE else result
        held = self._next(func, own)
        if held is own:
            return result
        self.changed += int((held != own).sum())
        return (_taken(args[0], held, func, args, kwargs or {}), held) if func in _CHOOSE else held

    def _next(self, func: object, own: Tensor) -> Tensor:
        place = self._seen[func]
        self._seen[func] += 1
        if self._records:
            self._held[func].append(own.clone())
            return own
        known = self._held[func]
        if place >= len(known) or known[place].shape != own.shape:
            raise ValueError(f"{func} decides about something else than in the first run")
        return own if torch.equal(known[place], own) else known[place].clone()


def _is_of_floats(args: Any) -> bool:
    return isinstance(args[0], Tensor) and args[0].is_floating_point()


def _taken(source: Tensor, indices: Tensor, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """The values of ``source`` at the indices along the axis that was chosen from."""
    named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    dim = named.get("dim", -1)
    squeezed = indices.dim() < source.dim()
    found = source.gather(dim, indices.unsqueeze(dim) if squeezed else indices)
    return found.squeeze(dim) if squeezed else found
