"""The pipeline: every stage, in order, on one screen.

    capture -> functionalize -> canonicalize -> lift -> recentre -> [hoist] -> lower

The program is a runnable graph after each stage.
"""

from __future__ import annotations

import time
from collections import Counter

from normfuse.errors import ExpectationError
from normfuse.folding import Folded
from normfuse.ir.effects import is_effectful
from normfuse.ir.grad_mode import switches_gradients
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.functionalize import functionalize
from normfuse.passes.hoist import hoist
from normfuse.passes.lift import lift
from normfuse.passes.lower import lower
from normfuse.passes.observer import Observer
from normfuse.passes.recentre import NAME as RECENTRE
from normfuse.passes.recentre import recentre
from normfuse.passes.work import Work
from normfuse.report import Refusal, Report

__all__ = ["check_expectation", "run_pipeline"]


def run_pipeline(
    program: Program, options: Options, observer: Observer | None = None
) -> tuple[Report, list[Folded]]:
    """Rewrite ``program`` in place; returns what happened and the weights to fold."""
    started = time.perf_counter()
    work = Work(program, options, Report(target=options.target, graphs=1, notes=list(program.notes)))
    if not (program.grad_enabled and switches_gradients(program.gm.graph)):
        functionalize(program.gm)
    canonicalize(program.gm)
    program.gm.graph.eliminate_dead_code(is_effectful)
    lift(work)
    if observer is not None:
        observer.lifted(work)
    refusal = _no_conversion(work)
    if refusal is None:
        recentre(work)
    else:
        for site in work.report.sites:
            site.refuse(refusal)
    folded = hoist(program)
    if observer is not None:
        observer.rewritten(work, folded)
    lower(program.gm)
    work.report.folded = len(folded)
    work.report.seconds = time.perf_counter() - started
    return work.report, folded


def _no_conversion(work: Work) -> Refusal | None:
    """Why nothing is converted at all, if so."""
    if work.options.target == "layer_norm":
        return Refusal("not_asked", "the target layer_norm asks for recognition only")
    if not work.options.runs(RECENTRE):
        return Refusal("not_asked", f"the rule {RECENTRE} is switched off by only or skip")
    return None


def check_expectation(report: Report, options: Options) -> None:
    """Raise when the outcome differs from what the user expects.

    Raises:
        ExpectationError: naming the kind, the expected and the found number.
    """
    for kind, expected in (options.expect or {}).items():
        found = report.after.get(kind, 0)
        if found != expected:
            raise ExpectationError(
                f"normfuse.expect: expected {expected} {kind} after rewriting, found {found}{_why(report)}"
            )


def _why(report: Report) -> str:
    codes = Counter(site.refusal.code for site in report.sites if site.refusal is not None)
    named = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    return f"; norms that stay: {named}" if named else ""
