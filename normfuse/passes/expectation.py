"""What a user expects of a rewrite, ``normfuse.expect``, against what came of it."""

from __future__ import annotations

from collections import Counter

from normfuse.errors import ExpectationError
from normfuse.ir.kinds import known_kinds
from normfuse.options import Options, unknown_name
from normfuse.report import Report

__all__ = ["check_expectation"]


def check_expectation(report: Report, options: Options) -> None:
    """Raise when the outcome differs from what the user expects.

    Raises:
        ExpectationError: naming the kind, the expected and the found number.
        OptionError: for a kind that nothing has named so far, with the nearest name.
    """
    for kind, expected in (options.expect or {}).items():
        found = report.after.get(kind, 0)
        if kind not in known_kinds():
            raise unknown_name("kind of norm", kind, known_kinds())
        if found != expected:
            raise ExpectationError(
                f"normfuse.expect: expected {expected} {kind} after rewriting, found {found}{_why(report)}"
            )


def _why(report: Report) -> str:
    codes = Counter(site.refusal.code for site in report.sites if site.refusal is not None)
    named = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    return f"; norms that stay: {named}" if named else ""
