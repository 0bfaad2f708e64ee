"""What a verification found, leaf by leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from normfuse.files import write_text

__all__ = ["Equivalence", "LeafError", "unjudged_paths", "worst_of"]

_SHOWN = 20
_GRADIENT = "grad:"


@dataclass(frozen=True)
class LeafError:
    """One tensor that the model returns (or one gradient), and how far the candidate's is from the oracle.

    ``allowed`` is how large the ``error_ratio`` may be here. ``judged`` is False when the original is itself
    no yardstick; the leaf then fails only if the candidate is not finite in other places. ``reason`` says
    why a leaf was not judged, or what failed where that is not the ratio. For integers and booleans the
    figures are against the reference, and the ratio is 0.0 or ``inf``.
    """

    path: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    error_ratio: float
    judged: bool
    ok: bool
    allowed: float = 0.0
    reason: str = ""

    @property
    def figure(self) -> str:
        """``1.56 (2.2 allowed)``."""
        return f"{self.error_ratio:.3g} ({self.allowed:.3g} allowed)"

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: the dtype as ``"float32"``, the shape as a list."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch."), "shape": list(self.shape)}


@dataclass(frozen=True)
class Equivalence:
    """The outcome of ``verify``: truthy when the candidate is as good as the original.

    ``max_abs_error``, ``max_rel_error`` and ``error_ratio`` are the worst over the judged leaves (0.0 without
    any), each of the candidate against the float64 oracle. ``ok`` also covers the leaves that are not judged:
    nothing vouches for an output that could not be judged, so it is not equivalent. ``unjudged`` names those.
    """

    ok: bool
    max_abs_error: float
    max_rel_error: float
    error_ratio: float
    leaves: tuple[LeafError, ...]
    unjudged: tuple[str, ...] = ()

    @classmethod
    def of(cls, leaves: Sequence[LeafError]) -> Equivalence:
        """Sum up ``leaves``."""
        judged = [leaf for leaf in leaves if leaf.judged]
        unjudged = unjudged_paths(leaves)
        return cls(
            ok=all(leaf.ok for leaf in leaves) and not unjudged,
            max_abs_error=max((leaf.max_abs_error for leaf in judged), default=0.0),
            max_rel_error=max((leaf.max_rel_error for leaf in judged), default=0.0),
            error_ratio=max((leaf.error_ratio for leaf in judged), default=0.0),
            leaves=tuple(leaves),
            unjudged=unjudged,
        )

    @property
    def differs(self) -> bool:
        """Whether some leaf is wrong, as opposed to not judged."""
        return not all(leaf.ok for leaf in self.leaves)

    @property
    def verdict(self) -> str:
        """``equivalent``, ``NOT equivalent`` or ``could not be judged``."""
        return "equivalent" if self.ok else "NOT equivalent" if self.differs else "could not be judged"

    @property
    def worst(self) -> LeafError | None:
        """The judged leaf whose ratio is the largest part of what is allowed."""
        return worst_of([leaf for leaf in self.leaves if leaf.judged])

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """The same facts in plain values; infinities stay Python floats."""
        summary = {k: getattr(self, k) for k in ("ok", "max_abs_error", "max_rel_error", "error_ratio")}
        told = {"verdict": self.verdict, "unjudged": list(self.unjudged)}
        return {**summary, **told, "leaves": [leaf.to_dict() for leaf in self.leaves]}

    def to_html(self, path: str | Path, *, reference: str = "", candidate: str = "") -> Path:
        """Write the result as one page, which needs no network; an existing file is replaced as a whole.

        ``reference`` and ``candidate`` are what the two are called on it.
        """
        from normfuse.verify.page import verification_page

        return write_text(path, verification_page(self, reference, candidate))

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self._title(), caption=self._caption())
        for heading in ("leaf", "dtype", "shape", "max abs", "max rel", "ratio", "verdict"):
            table.add_column(heading, overflow="fold")
        for leaf in self._worst():
            table.add_row(*_row(leaf))
        text = StringIO()
        Console(file=text, width=110, no_color=True).print(table)
        return text.getvalue().rstrip()

    def _title(self) -> str:
        if self.verdict == "could not be judged":
            return f"could not be judged: {', '.join(self.unjudged)}"
        figure = "" if self.worst is None else f": worst error ratio {self.worst.figure}"
        return f"{self.verdict}{figure}"

    def _worst(self) -> list[LeafError]:
        return sorted(self.leaves, key=lambda leaf: (leaf.ok, not leaf.judged, -leaf.error_ratio))[:_SHOWN]

    def _caption(self) -> str:
        unjudged = sum(not leaf.judged for leaf in self.leaves)
        hidden = max(len(self.leaves) - _SHOWN, 0)
        parts = [f"{len(self.leaves)} leaves"]
        parts += [f"{unjudged} not judged"] if unjudged else []
        parts += [f"the best {hidden} not shown"] if hidden else []
        reasons = dict.fromkeys(f"{leaf.path}: {leaf.reason}" for leaf in self._worst() if leaf.reason)
        return "\n".join([", ".join(parts), *reasons])


def unjudged_paths(leaves: Sequence[LeafError]) -> tuple[str, ...]:
    """The leaves that were judged nowhere, where a path may occur more than once.

    A gradient may be zero but for rounding, as that of a key's bias is, so that only all of them together
    have to say something.
    """
    judged = {leaf.path for leaf in leaves if leaf.judged}
    missing = dict.fromkeys(leaf.path for leaf in leaves if leaf.path not in judged)
    if any(path.startswith(_GRADIENT) for path in judged):
        missing = dict.fromkeys(path for path in missing if not path.startswith(_GRADIENT))
    return tuple(missing)


def worst_of(leaves: Sequence[LeafError]) -> LeafError | None:
    """That whose ratio is the largest part of what is allowed."""
    return max(leaves, key=_strain, default=None)


def _strain(leaf: LeafError) -> float:
    return leaf.error_ratio / leaf.allowed if leaf.allowed > 0.0 else leaf.error_ratio


def _row(leaf: LeafError) -> list[str]:
    figures = [f"{v:.2e}" for v in (leaf.max_abs_error, leaf.max_rel_error)]
    verdict = ("ok" if leaf.judged else "not judged") if leaf.ok else "FAILED"
    dtype = str(leaf.dtype).removeprefix("torch.")
    ratio = leaf.figure if leaf.judged else ""
    return [leaf.path, dtype, "x".join(map(str, leaf.shape)), *figures, ratio, verdict]
