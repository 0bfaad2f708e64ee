"""A graph compiled with its weights in it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch.fx import GraphModule

from normfuse.backends import inner
from normfuse.backends.doubts import graph_name
from normfuse.backends.dynamo import compiled_again
from normfuse.backends.inner import without_autocast
from normfuse.backends.ready import Ready, RewrittenGraph, check_rewritten, fake_of, is_watched
from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.errors import NormfuseError, cause, is_strict
from normfuse.folding import Slots
from normfuse.folding.frozen import FrozenWeights
from normfuse.freezing.call import FrozenCall
from normfuse.freezing.constants import let_go, with_constants
from normfuse.freezing.decide import Freezing, plan_freezing
from normfuse.freezing.gain import time_of_products
from normfuse.freezing.large_pages import put_together
from normfuse.freezing.library import choosing_libraries
from normfuse.freezing.room import make_room
from normfuse.freezing.tuning import settings_for
from normfuse.inductor_compat import modules_let_go
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.passes.collector import collector_at_rest
from normfuse.torch_compat import autocast_off

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
    state = _state(graph_name(gm), plan, graph.slots, program, example_inputs)
    if options.freeze == "auto" and (reason := make_room(state)):
        report.notes.append(_WITHOUT.format(reason))
        return None
    try:
        return _compiled(gm, graph, rewritten, example_inputs, plan, state, options, settings)
    except Exception as error:
        if is_strict() or _is_for_others(error):
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


def _is_for_others(error: Exception) -> bool:
    """Whether an error is the user's to read, or Dynamo's to act on; what a compiler raises is neither."""
    is_dynamos = isinstance(error, TorchDynamoException) and not isinstance(error, BackendCompilerFailed)
    return is_dynamos or isinstance(error, NormfuseError)


def _compiled(
    gm: GraphModule,
    graph: Ready,
    rewritten: RewrittenGraph,
    example_inputs: Sequence[Any],
    plan: Freezing,
    state: FrozenWeights,
    options: Options,
    settings: Mapping[str, Any],
) -> FrozenCall:
    tensors = graph.slots.tensors(example_inputs)
    check_rewritten(gm, rewritten, example_inputs, tensors)
    given = [*example_inputs, *tensors, *graph.constants]
    first = len(example_inputs) + len(tensors)
    values = {place: given[place] for place in (*plan.places, *range(first, len(given)))}
    module, kept = with_constants(graph.module, values)
    fakes = [fake_of(v, rewritten.fake_mode) if p >= len(example_inputs) else v for p, v in enumerate(given)]
    tuned = settings_for(settings)
    with autocast_off(), torch.no_grad(), modules_let_go() as constants:
        compiled = _inductor(module, [fakes[p] for p in kept], options, tuned, state)
    let_go(module)
    put_together(_copies(constants, values.values()))
    if is_autocast_enabled():
        compiled = without_autocast(compiled)
    state.compiled = compiled
    _report(rewritten, state.bytes)
    return FrozenCall(state, kept, gm, compiled_again(), plan.written)


def _copies(constants: Iterable[torch.Tensor], originals: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The constants on the CPU that do not lie in the memory of the model."""
    shared = {one.untyped_storage().data_ptr() for one in originals}
    return [
        one
        for one in constants
        if one.device.type == "cpu"
        and (one.layout != torch.strided or one.untyped_storage().data_ptr() not in shared)
    ]


def _inductor(
    module: GraphModule,
    fakes: Sequence[Any],
    options: Options,
    settings: Mapping[str, Any],
    state: FrozenWeights,
) -> inner.Compiled:
    """Where Inductor cannot go on with what normfuse packs, it packs the weights itself."""
    try:
        with choosing_libraries(state.held) as choices:
            compiled = inner.run_inner(module, fakes, options, settings)
        state.packed, state.is_shareable = choices.packed, state.is_shareable and not choices.has_others
        if state.held is not None:
            new = state.packed.keys() - state.held.keys()
            state.bytes = sum(state.packed[key].nbytes for key in new)
            state.held = None
        return compiled
    except Exception as error:
        if is_strict() or _is_for_others(error):
            raise
        log.info("compiled again, without a choice of libraries", exc_info=error)
        state.is_shareable, state.held = False, None
        return inner.run_inner(module, fakes, options, settings)


@collector_at_rest()
def _state(
    graph: str, plan: Freezing, slots: Slots, program: Program, example_inputs: Sequence[Any]
) -> FrozenWeights:
    """The weights that the constants are made of, as they are now."""
    inputs = program.inputs
    places = sorted(slots.places | {p for p in plan.places if p < len(inputs)})
    owners = {id(o): o for p in places if (o := inputs[p].owner) is not None}
    watched = {i: inputs[p].owner for i, p in enumerate(places) if is_watched(inputs[p].node, program)}
    sources = [example_inputs[p] for p in places]
    state = FrozenWeights(graph, places, sources, list(owners.values()), watched)
    state.rows, state.bytes, state.is_shareable = plan.rows, plan.bytes, plan.is_shareable
    return state
