"""Which entries of a piece of memory a tensor shows, as one range from the first to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from normfuse.torch_compat import storage_id

__all__ = ["Span", "shares_memory"]


@dataclass(frozen=True)
class Span:
    """Entries ``start`` to ``stop`` of the memory with this identity; all of it where they are not known."""

    memory: int | None
    start: int = 0
    stop: int | None = None

    @classmethod
    def of(cls, memory: int | None, value: torch.Tensor, start: int = 0) -> Span:
        """What a tensor shows of memory in which it lies from ``start`` on, its own offset added."""
        if memory is None or value.layout != torch.strided or not value.numel():
            return cls(memory)
        first: Any = start + value.storage_offset()
        steps = ((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        last = first + sum(steps)
        return cls(memory, first, last + 1) if isinstance(last, int) else cls(memory)

    def overlaps(self, other: Span) -> bool:
        """Whether both may show one entry."""
        if self.memory != other.memory:
            return False
        if self.stop is None or other.stop is None:
            return True
        return self.start < other.stop and other.start < self.stop


def shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors, perhaps fake ones, are known to lie in the same memory."""
    known = storage_id(a)
    return known is not None and known == storage_id(b) and a.dtype == b.dtype
