"""The pipeline: every stage, in order, on one screen.

    capture -> functionalize -> canonicalize -> lift -> recentre -> [hoist] -> lower

The program is a runnable graph after each stage.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from normfuse.errors import ExpectationError
from normfuse.folding import Folded
from normfuse.ir.effects import is_effectful
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
    work = Work(program, options, Report(target=options.target, graphs=1))
    if not _under_autocast(program):
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
    if _under_autocast(work.program):
        return Refusal(
            "autocast",
            "part of the graph runs under torch.autocast, which decides on types when it runs",
            remedy="enter torch.autocast around the call of the compiled model instead of inside it",
        )
    if work.program.grad_enabled:
        return Refusal(
            "grad_enabled",
            "gradients are recorded, and folded weights would not receive them",
            remedy="call the model under torch.no_grad() or torch.inference_mode()",
        )
    return None


def _under_autocast(program: Program) -> bool:
    """Whether some operators run in other types than the trace says."""
    return any(n.target is torch.amp.autocast_mode._enter_autocast for n in program.gm.graph.nodes)


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
