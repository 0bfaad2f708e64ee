"""The pipeline: every stage, in order, on one screen.

    capture -> positional -> functionalize -> canonicalize -> lift -> rule after rule -> settle_shifts
            -> [hoist] -> lower

The rules stand in :mod:`normfuse.rule_names`. The program is a runnable graph after each stage, and
:mod:`normfuse.passes.legal_form` says what else holds of it; observers are told of every stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from torch.fx import Node

from normfuse.analysis.picture import pictured
from normfuse.analysis.savings import cost_of_norm
from normfuse.analysis.time_share import time_of
from normfuse.analysis.weights import WeightValues
from normfuse.errors import is_strict
from normfuse.folding import Folded
from normfuse.ir.dead_code import drop_unused
from normfuse.ir.effects import Effects
from normfuse.ir.grad_mode import switches_gradients
from normfuse.ir.program import Program
from normfuse.lowering.choose import LOWER, lower
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.catalogue import RULES
from normfuse.passes.collector import collector_at_rest
from normfuse.passes.functionalize import functionalize
from normfuse.passes.hoist import hoist
from normfuse.passes.legal_form import LegalForm
from normfuse.passes.lift import lift
from normfuse.passes.observer import Observer
from normfuse.passes.positional import positional
from normfuse.passes.rule import Rule
from normfuse.passes.settle_shifts import settle_shifts
from normfuse.passes.spreads import narrow_spreads
from normfuse.passes.views import merge_views
from normfuse.passes.work import Work
from normfuse.report import Cost, Refusal, Report

__all__ = ["STAGES", "run_pipeline"]


@collector_at_rest()
def run_pipeline(
    program: Program, options: Options, observer: Observer | None = None, *, precise: bool = False
) -> tuple[Report, list[Folded]]:
    """Rewrite ``program`` in place; returns what happened and the weights to fold."""
    started = time.perf_counter()
    report = Report(target=options.target, graphs=1, notes=list(program.notes))
    work = Work(program, options, report, precise=precise)
    observers = _observers(observer)
    for name, run in STAGES:
        run(work)
        for one in observers:
            one.stage(name, work)
    _tell(work)
    work.report.folded = len(work.folded)
    work.report.copied_bytes = 0 if program.copies_tables else sum(one.size for one in work.folded)
    work.report.seconds = time.perf_counter() - started
    return work.report, work.folded


def _observers(given: Observer | None) -> list[Observer]:
    checking: list[Observer] = [LegalForm()] if is_strict() else []
    return checking if given is None else [*checking, given]


def _functionalize(work: Work) -> None:
    program = work.program
    if not (program.grad_enabled and switches_gradients(program.gm.graph)):
        functionalize(program.gm, program.grad_enabled)


def _canonicalize(work: Work) -> None:
    canonicalize(work.program.gm)
    if not work.program.grad_enabled:
        merge_views(work.program.gm.graph)
    narrow_spreads(work.program.gm)
    drop_unused(work.program.gm.graph)


def _lift(work: Work) -> None:
    lift(work)
    _estimate(work)
    _picture(work)


def _hoist(work: Work) -> None:
    left = {id(site): cost_of_norm(node) for node, site in work.sites.items()}
    for site in work.report.sites:
        if site.rewrites:
            site.saved = work.costs.get(id(site), Cost()) - left.get(id(site), Cost())
    work.folded = hoist(work.program)


def _lower(work: Work) -> None:
    def may(node: Node) -> bool:
        return node not in work.sites or work.may(node, LOWER)

    work.lowered = lower(work.program, work.sites, work.options, may)
    drop_unused(work.program.gm.graph)


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
        work.costs[id(site)] = cost_of_norm(node)


def _picture(work: Work) -> None:
    """What the report draws; a graph that cannot be drawn is compiled all the same."""
    places = {id(site): index for index, site in enumerate(work.report.sites)}
    effects = Effects(work.program.gm.graph)
    sites = {node: places[id(site)] for node, site in work.sites.items()}
    try:
        work.report.streams = pictured(sites, WeightValues(work.program, effects), effects)
    except Exception:
        if is_strict():
            raise


def _tell(work: Work) -> None:
    """Say what is approximate, beside the certificates."""
    count = len(work.dropped)
    if count:
        work.report.notes.append(
            f"approximate: {count} norm(s) left out that other norms read; see the bound in each certificate"
        )


def _run(rule: Rule, work: Work) -> None:
    """One rule, or the reason why it does not run for every norm that waits for it."""
    refusal = _why_not(work, rule)
    if refusal is None:
        rule.run(work)
        return
    served = rule.serves(work.options.target)
    for site in work.report.sites:
        if rule.waits(site) and (served or not site.rewrites):
            site.refuse(refusal, rule.name)


def _why_not(work: Work, rule: Rule) -> Refusal | None:
    target = work.options.target
    if not rule.serves(target):
        return Refusal("not_asked", f"the rule {rule.name} does not run with the target {target}")
    if not work.options.runs(rule.name):
        return Refusal("not_asked", f"the rule {rule.name} is switched off by only or skip")
    return rule.idle(work)


#: By the name that observers are told.
STAGES: tuple[tuple[str, Callable[[Work], None]], ...] = (
    ("capture", lambda work: None),
    ("positional", lambda work: positional(work.program.gm)),
    ("functionalize", _functionalize),
    ("canonicalize", _canonicalize),
    ("lift", _lift),
    *((rule.name, partial(_run, rule)) for rule in RULES),
    ("settle_shifts", lambda work: settle_shifts(work)),
    ("hoist", _hoist),
    ("lower", _lower),
)
