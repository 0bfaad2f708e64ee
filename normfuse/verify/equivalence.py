"""What a verification found, leaf by leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import torch

__all__ = ["Equivalence", "LeafError"]

_SHOWN = 20


@dataclass(frozen=True)
class LeafError:
    """One tensor that the model returns (or one gradient), and how far the candidate's is from the oracle.

    ``judged`` is False when the original is itself no yardstick; the leaf then fails only if the candidate is
    not finite in other places. For integers and booleans the figures are against the reference, and the ratio
    is 0.0 or ``inf``.
    """

    path: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    error_ratio: float
    judged: bool
    ok: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: the dtype as ``"float32"``, the shape as a list."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch."), "shape": list(self.shape)}


@dataclass(frozen=True)
class Equivalence:
    """The outcome of ``verify``: truthy when the candidate is as good as the original.

    ``max_abs_error``, ``max_rel_error`` and ``error_ratio`` are the worst over the judged leaves (0.0 without
    any), each of the candidate against the float64 oracle. ``ok`` also covers the leaves that are not judged.
    """

    ok: bool
    max_abs_error: float
    max_rel_error: float
    error_ratio: float
    leaves: tuple[LeafError, ...]

    @classmethod
    def of(cls, leaves: Sequence[LeafError]) -> Equivalence:
        """Sum up ``leaves``."""
        judged = [leaf for leaf in leaves if leaf.judged]
        return cls(
            ok=all(leaf.ok for leaf in leaves),
            max_abs_error=max((leaf.max_abs_error for leaf in judged), default=0.0),
            max_rel_error=max((leaf.max_rel_error for leaf in judged), default=0.0),
            error_ratio=max((leaf.error_ratio for leaf in judged), default=0.0),
            leaves=tuple(leaves),
        )

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """The same facts in plain values; infinities stay Python floats."""
        summary = {k: getattr(self, k) for k in ("ok", "max_abs_error", "max_rel_error", "error_ratio")}
        return {**summary, "leaves": [leaf.to_dict() for leaf in self.leaves]}

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        verdict = "equivalent" if self.ok else "NOT equivalent"
        table = Table(title=f"{verdict}: worst error ratio {self.error_ratio:.3g}", caption=self._caption())
        for heading in ("leaf", "dtype", "shape", "max abs", "max rel", "ratio", "verdict"):
            table.add_column(heading, overflow="fold")
        for leaf in self._worst():
            table.add_row(*_row(leaf))
        text = StringIO()
        Console(file=text, width=110, no_color=True).print(table)
        return text.getvalue().rstrip()

    def _worst(self) -> list[LeafError]:
        return sorted(self.leaves, key=lambda leaf: (leaf.ok, not leaf.judged, -leaf.error_ratio))[:_SHOWN]

    def _caption(self) -> str:
        unjudged = sum(not leaf.judged for leaf in self.leaves)
        hidden = max(len(self.leaves) - _SHOWN, 0)
        parts = [f"{len(self.leaves)} leaves"]
        parts += [f"{unjudged} not judged"] if unjudged else []
        parts += [f"the best {hidden} not shown"] if hidden else []
        return ", ".join(parts)


def _row(leaf: LeafError) -> list[str]:
    figures = [f"{v:.2e}" for v in (leaf.max_abs_error, leaf.max_rel_error)]
    verdict = ("ok" if leaf.judged else "not judged") if leaf.ok else "FAILED"
    dtype = str(leaf.dtype).removeprefix("torch.")
    return [leaf.path, dtype, "x".join(map(str, leaf.shape)), *figures, f"{leaf.error_ratio:.3g}", verdict]
