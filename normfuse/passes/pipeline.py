"""The pipeline: every stage, in order, on one screen.

    capture -> positional -> functionalize -> canonicalize -> lift -> fold_constants -> fold_affine
            -> recentre -> settle_shifts -> [hoist] -> lower

The program is a runnable graph after each stage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from normfuse.analysis.time_share import time_of
from normfuse.errors import ExpectationError
from normfuse.folding import Folded
from normfuse.ir.effects import is_effectful
from normfuse.ir.grad_mode import switches_gradients
from normfuse.ir.kinds import known_kinds
from normfuse.ir.program import Program
from normfuse.options import Options, unknown_name
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.fold_affine import NAME as FOLD_AFFINE
from normfuse.passes.fold_affine import fold_affine
from normfuse.passes.fold_constants import NAME as FOLD_CONSTANTS
from normfuse.passes.fold_constants import fold_constants
from normfuse.passes.functionalize import functionalize
from normfuse.passes.hoist import hoist
from normfuse.passes.lift import lift
from normfuse.passes.lower import lower
from normfuse.passes.observer import Observer
from normfuse.passes.positional import positional
from normfuse.passes.recentre import NAME as RECENTRE
from normfuse.passes.recentre import recentre
from normfuse.passes.settle_shifts import settle_shifts
from normfuse.passes.work import Work
from normfuse.report import Refusal, Report, Site

__all__ = ["check_expectation", "run_pipeline"]


def run_pipeline(
    program: Program, options: Options, observer: Observer | None = None, *, precise: bool = False
) -> tuple[Report, list[Folded]]:
    """Rewrite ``program`` in place; returns what happened and the weights to fold."""
    started = time.perf_counter()
    report = Report(target=options.target, graphs=1, notes=list(program.notes))
    work = Work(program, options, report, precise=precise)
    positional(program.gm)
    if not (program.grad_enabled and switches_gradients(program.gm.graph)):
        functionalize(program.gm, program.grad_enabled)
    canonicalize(program.gm)
    program.gm.graph.eliminate_dead_code(is_effectful)
    lift(work)
    _estimate(work)
    if observer is not None:
        observer.lifted(work)
    _run(work, FOLD_CONSTANTS, fold_constants)
    _run(work, FOLD_AFFINE, fold_affine)
    _run(work, RECENTRE, recentre, _no_conversion(work))
    settle_shifts(work)
    folded = hoist(program)
    if observer is not None:
        observer.rewritten(work, folded)
    program.gm.graph.eliminate_dead_code(is_effectful)
    lower(program.gm)
    work.report.folded = len(folded)
    work.report.seconds = time.perf_counter() - started
    return work.report, folded


def _estimate(work: Work) -> None:
    """Where the time goes before anything is changed; an operator that cannot be estimated stops nothing."""
    try:
        times = {node: time_of(node) for node in work.program.gm.graph.nodes}
    except Exception:
        work.report.time = None
        return
    known = [time for time in times.values() if time is not None]
    work.report.time = sum(known) if len(known) == len(times) else None
    for node, site in work.sites.items():
        site.time = times[node] or 0.0


def _run(work: Work, name: str, rule: Callable[[Work], None], refusal: Refusal | None = None) -> None:
    """One rule, or the reason for every norm of its kinds why it does not run."""
    if refusal is None and not work.options.runs(name):
        refusal = Refusal("not_asked", f"the rule {name} is switched off by only or skip")
    if refusal is None:
        rule(work)
        return
    for site in work.report.sites:
        if site.action == "kept" and site.refusal is None and _rule_of(site) == name:
            site.refuse(refusal)


def _rule_of(site: Site) -> str:
    """The rule that a norm waits for."""
    if site.kind == "weight_standardization":
        return FOLD_CONSTANTS
    return RECENTRE if site.spec["statistics"] == "input" else FOLD_AFFINE


def _no_conversion(work: Work) -> Refusal | None:
    """Why no norm is converted at all, if so."""
    if work.options.target == "layer_norm":
        return Refusal("not_asked", "with the target layer_norm, norms are only recognised")
    return None


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
