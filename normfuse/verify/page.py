"""The page of a verification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from normfuse.page.document import document, figures, section, versions
from normfuse.page.elements import Content, element, sentence
from normfuse.page.scale import Point, plain_table, scale

if TYPE_CHECKING:
    from normfuse.verify.equivalence import Equivalence, LeafError
    from normfuse.verify.programs import CaseOutcome

__all__ = ["verification_page"]

_SHOWN = 40
_END = 1.6


def verification_page(found: Equivalence, reference: str = "", candidate: str = "") -> str:
    """The page of ``found``; the programs are called as the caller calls them."""
    cases: Sequence[CaseOutcome] = getattr(found, "cases", ())
    worst = found.worst
    shown = {
        "worst error / the original's": f"{found.error_ratio:.3g}" if worst is not None else "",
        "allowed there": f"{worst.allowed:.3g}" if worst is not None and worst.allowed else "",
        "largest error": f"{found.max_abs_error:.2e}" if worst is not None else "",
        "inputs": str(len(cases)) if cases else "",
        "outputs not judged": str(len(found.unjudged)) if found.unjudged else "",
    }
    points = [point for case in cases for point in _case_point(case)] if cases else _leaf_points(found.leaves)
    explained = element(
        "p",
        "The candidate's distance from float64 over the reference's own, as a part of what is allowed: "
        "the line is the limit.",
    )
    body = [
        figures(shown),
        section("errors", "Errors", [explained, scale(points, (0.0, _END), 1.0)] if points else None),
        section("inputs", "Inputs", _cases(cases)),
        section("outputs", "Outputs", _leaves(found)),
    ]
    title = " against ".join(name for name in (candidate, reference) if name)
    facts = {"reference": reference, "candidate": candidate, **versions()}
    return document("verification", title, _sentence(found), body, facts)


def _sentence(found: Equivalence) -> str:
    worst = found.worst
    if found.ok and worst is not None:
        return f"Equivalent: at most {worst.figure} times the original's own distance from float64."
    if found.differs:
        where = "" if worst is None else f": {worst.path} has error ratio {worst.figure}"
        return f"NOT equivalent{where}."
    names = ", ".join(found.unjudged[:3])
    return f"Could not be judged: the original is no yardstick for {names or 'any output'} on any input."


def _strain(leaf: LeafError) -> float:
    return leaf.error_ratio / leaf.allowed if leaf.allowed else leaf.error_ratio


def _case_point(case: CaseOutcome) -> list[Point]:
    one = case.equivalence
    worst = None if one is None else one.worst
    if worst is None:
        return []
    return [_point(case.name, worst, case.ok)]


def _leaf_points(leaves: Sequence[LeafError]) -> list[Point]:
    judged = sorted((leaf for leaf in leaves if leaf.judged), key=_strain, reverse=True)
    return [_point(leaf.path, leaf, leaf.ok) for leaf in judged[:_SHOWN]]


def _point(name: str, leaf: LeafError, ok: bool) -> Point:
    strain = _strain(leaf)
    return Point(name, strain if math.isfinite(strain) else _END, leaf.figure, "good" if ok else "bad")


def _cases(cases: Sequence[CaseOutcome]) -> Content:
    rows = [(case.name, case.kind, *_case_figures(case), _verdict(case), case.note) for case in cases]
    headings = ("inputs", "kind", "error / original's", "largest error", "relative", "verdict", "")
    return plain_table(headings, rows) if rows else None


def _case_figures(case: CaseOutcome) -> tuple[str, str, str]:
    one = case.equivalence
    if one is None or one.worst is None:
        return "", "", ""
    return one.worst.figure, f"{one.max_abs_error:.2e}", f"{one.max_rel_error:.2e}"


def _verdict(case: CaseOutcome) -> str:
    if not case.ok:
        return "NOT equivalent"
    if case.equivalence is None:
        return "not run"
    return "not judged" if case.equivalence.worst is None else "equivalent"


def _leaves(found: Equivalence) -> Content:
    """The worst first, and those that were not judged or failed before them."""
    ordered = sorted(found.leaves, key=lambda leaf: (leaf.ok, not leaf.judged, -_strain(leaf)))
    rows = [
        (
            leaf.path, str(leaf.dtype).removeprefix("torch."), " x ".join(map(str, leaf.shape)),
            leaf.figure if leaf.judged else "", f"{leaf.max_abs_error:.2e}",
            ("ok" if leaf.judged else "not judged") if leaf.ok else "FAILED", leaf.reason,
        )
        for leaf in ordered[:_SHOWN]
    ]  # fmt: skip
    hidden = len(ordered) - len(rows)
    more = element("p", sentence(f"the best {hidden} are not shown"), class_="quiet") if hidden else None
    headings = ("output", "dtype", "shape", "error / original's", "largest error", "verdict", "reason")
    return [plain_table(headings, rows), more] if rows else None
