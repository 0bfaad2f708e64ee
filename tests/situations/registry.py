"""Situations in which people run models, each with what becomes of the norms in it.

A situation is a function that compares a compiled model with the model itself and returns the
report. What the report says is written as one cell of the table in ``docs/situations.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from normfuse.report import Report

__all__ = ["SITUATIONS", "Situation", "cell", "page", "situation", "table"]


@dataclass(frozen=True)
class Situation:
    area: str
    name: str
    expected: str
    run: Callable[[], Report]
    slow: bool = False


SITUATIONS: list[Situation] = []


def situation(
    area: str, name: str, expected: str, *, slow: bool = False
) -> Callable[[Callable[[], Report]], Callable[[], Report]]:
    """Register a situation; ``expected`` is the cell that it must give."""

    def register(run: Callable[[], Report]) -> Callable[[], Report]:
        SITUATIONS.append(Situation(area, name, expected, run, slow))
        return run

    return register


def cell(report: Report) -> str:
    """What became of the norms, in words that do not change with their number."""
    parts = []
    of = len(report.sites)
    if done := sum(site.action == "converted" for site in report.sites):
        parts.append(f"works, {done} of {of} converted")
    if done := sum(site.action == "folded" and not site.becomes for site in report.sites):
        parts.append(f"works, {done} of {of} folded")
    codes = Counter(s.refusal.code for s in report.sites if s.refusal is not None)
    if codes:
        parts.append("refused: " + ", ".join(f"`{code}`" for code in sorted(codes)))
    if any("left to Inductor" in note for note in report.notes):
        parts.append("falls back to Inductor")
    if any("left as they are" in note for note in report.notes):
        parts.append("transformed operators left as they are")
    return "; ".join(parts) or "no norms seen"


def table() -> str:
    """The page's tables, one for each area."""
    areas = dict.fromkeys(s.area for s in SITUATIONS)
    blocks = []
    for area in areas:
        rows = [f"| {s.name} | {s.expected} |" for s in SITUATIONS if s.area == area]
        blocks.append(
            "\n".join([f"## {area}", "", "| situation | what becomes of its norms |", "|---|---|", *rows])
        )
    return "\n\n".join(blocks) + "\n"


_HEADER = """\
# What works where

Each row is a test (`tests/situations`) that compares the compiled model with the model itself, values and,
where something trains, gradients. The networks are small pre-norm transformers of three LayerNorms or more,
compiled with `policy="convert"`. "Converted" norms became RMSNorm, "folded" ones are gone into weights; a
refusal leaves the norm as it is and names the reason; "falls back" means that the whole graph went to
Inductor unchanged.

"""


def page() -> str:
    """The text of ``docs/situations.md``."""
    return _HEADER + table()
