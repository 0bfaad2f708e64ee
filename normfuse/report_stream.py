"""A residual stream as a report shows it: who writes it, which norms read it, and who reads those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

__all__ = ["Operation", "Part"]


class Operation(NamedTuple):
    """An operator in the words of the model: ``linear``, ``h.0.attn.c_attn``, ``model.py:42``."""

    operator: str
    module: str = ""
    source: str = ""


@dataclass(frozen=True)
class Part:
    """One thing on the way of a stream, in the order in which the model runs.

    Attributes:
        role: ``"writer"``, ``"norm"``, or ``"reader"``, which reads values before any norm does.
        operation: what it is, and where.
        site: of a norm, its place among the sites of the report; -1 for all else.
        readers: of a norm, what reads its result.
        after: of a writer, the norms of the stream that lead to it, by their sites.
    """

    role: str
    operation: Operation
    site: int = -1
    readers: tuple[Operation, ...] = ()
    after: tuple[int, ...] = ()

    def shifted(self, sites: int) -> Part:
        """The same part in a report that has so many sites before it."""
        return self.placed(lambda index: index + sites)

    def placed(self, place: Callable[[int], int]) -> Part:
        """The same part in a report that has each site at another place."""
        site = place(self.site) if self.role == "norm" else -1
        return replace(self, site=site, after=tuple(map(place, self.after)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "operation": self.operation._asdict(),
            "readers": [reader._asdict() for reader in self.readers],
            "after": list(self.after),
        }
