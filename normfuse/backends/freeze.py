"""A graph compiled with its weights in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from normfuse.backends.doubts import graph_name
from normfuse.backends.dynamo import compiled_again
from normfuse.backends.frozen_graph import FrozenGraph, is_for_others
from normfuse.backends.ready import Ready, RewrittenGraph, check_rewritten, is_watched
from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.errors import cause, is_strict
from normfuse.folding.store import Owner
from normfuse.freezing.call import FrozenCall
from normfuse.freezing.decide import Freezing, plan_freezing
from normfuse.freezing.gain import time_of_products
from normfuse.freezing.room import make_room
from normfuse.freezing.tuning import settings_for
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.collector import collector_at_rest

__all__ = ["compile_frozen", "note_freezing"]

log = logging.getLogger("normfuse")


def compile_frozen(
    gm: GraphModule,
    graph: Ready,
    rewritten: RewrittenGraph,
    example_inputs: Sequence[Any],
    options: Options,
    settings: Mapping[str, Any],
) -> FrozenCall | None:
    """The graph with its weights as constants, or None and, unless it is plain, a note that says why not."""
    program, report = rewritten.program, rewritten.report
    plan = _plan(gm, rewritten, example_inputs, options, settings)
    if plan is None:
        return None
    whole = _whole(gm, graph, rewritten, example_inputs, plan, options, settings)
    state = whole.weights(example_inputs, _owners(program, whole.places))
    if options.freeze == "auto" and (reason := make_room(state)):
        report.notes.append(_WITHOUT.format(reason))
        return None
    try:
        check_rewritten(gm, rewritten, example_inputs, graph.slots.tensors(example_inputs))
        call = whole.compiled(example_inputs, state)
        _report(rewritten, state.bytes)
        return call
    except Exception as error:
        if is_strict() or is_for_others(error):
            raise
        report.notes.append(_WITHOUT.format(cause(error)))
        log.info("freezing failed", exc_info=error)
        return None


def note_freezing(
    gm: GraphModule, rewritten: RewrittenGraph, example_inputs: Sequence[Any], options: Options
) -> None:
    """Say in the report what freezing would do to a graph, and what it would be worth."""
    plan = _plan(gm, rewritten, example_inputs, options, {})
    if plan is not None:
        _report(rewritten, plan.bytes)
        rewritten.report.products = time_of_products(plan.products)


def _report(rewritten: RewrittenGraph, size: int) -> None:
    """Folded copies are not held beside what is stored in another order."""
    report = rewritten.report
    report.frozen, report.frozen_bytes, report.copied_bytes = 1, size, 0


@collector_at_rest()
def _plan(
    gm: GraphModule,
    rewritten: RewrittenGraph,
    example_inputs: Sequence[Any],
    options: Options,
    settings: Mapping[str, Any],
) -> Freezing | None:
    folded = [one.node for one in rewritten.folded]
    plan, reason = plan_freezing(options, settings, rewritten.program, folded, example_inputs, graph_name(gm))
    if plan is None and reason:
        rewritten.report.notes.append(_WITHOUT.format(reason))
    return plan


_WITHOUT = "a graph is compiled without its weights in it: {}"


def _whole(
    gm: GraphModule,
    graph: Ready,
    rewritten: RewrittenGraph,
    example_inputs: Sequence[Any],
    plan: Freezing,
    options: Options,
    settings: Mapping[str, Any],
) -> FrozenGraph:
    program, inputs = rewritten.program, rewritten.program.inputs
    places = sorted(graph.slots.places | {p for p in plan.places if p < len(inputs)})
    watched = [i for i, p in enumerate(places) if is_watched(inputs[p].node, program)]
    given = zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
    traced = [node.meta.get("example_value", value) for node, value in given]
    report = rewritten.report

    def note(size: int) -> None:
        report.frozen_bytes += size

    return FrozenGraph(
        graph_name(gm), gm, graph, plan.places, plan.written, plan.rows, plan.bytes, plan.is_shareable,
        tuple(traced), tuple(places), tuple(watched), rewritten.fake_mode, is_autocast_enabled(), options,
        settings_for(settings), compiled_again(), note,
    )  # fmt: skip


def _owners(program: Program, places: Sequence[int]) -> list[Owner]:
    owners = {id(o): o for p in places if (o := program.inputs[p].owner) is not None}
    return list(owners.values())
