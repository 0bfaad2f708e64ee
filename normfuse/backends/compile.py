"""One Dynamo graph through the pipeline and on to Inductor.

Whatever goes wrong in between, the user gets Inductor's result on the original graph and one
warning that names the cause; ``NORMFUSE_STRICT=1`` raises instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule, Node

from normfuse.backends.check import check_output
from normfuse.backends.doubts import doubted, graph_name
from normfuse.backends.dynamo import capture, compiled_again, graph_break, hand_on_marks, visible
from normfuse.backends.evaluation import hint_at_no_grad
from normfuse.backends.folded_call import FoldedCall
from normfuse.backends.inner import check_inductor, run_inner, without_autocast
from normfuse.backends.session import record
from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.errors import NormfuseError, OptionError, UncapturableError, cause, is_strict
from normfuse.folding import Asked, Folded, Premise, Slot, Slots, can_watch
from normfuse.folding.frozen import FrozenWeights
from normfuse.freezing.call import FrozenCall
from normfuse.freezing.constants import with_constants
from normfuse.freezing.decide import Freezing, plan_freezing
from normfuse.freezing.tuning import quiet, settings_for
from normfuse.ir.program import Program, Role
from normfuse.options import Options, split_options
from normfuse.passes.catalogue import check_rules
from normfuse.passes.lift_constants import lift_constants
from normfuse.passes.observer import Observer
from normfuse.passes.pipeline import check_expectation, run_pipeline
from normfuse.report import Report
from normfuse.torch_compat import FakeTensorMode, autocast_off, unnoticed
from normfuse.verify import widen
from normfuse.verify.sites import rewrite_verified
from normfuse.warn import warn_user

__all__ = ["RewrittenGraph", "compile_graph", "rewrite_graph"]

log = logging.getLogger("normfuse")


def compile_graph(
    gm: GraphModule, example_inputs: Sequence[Any], mode: str | None, given: Mapping[str, Any] | None
) -> Callable[..., Any]:
    """Rewrite and compile one graph; see :func:`normfuse.backends.entry.normfuse_backend`."""
    try:
        options, settings = _checked(mode, given)
    except NormfuseError as error:
        raise visible(error) from None
    report = Report(target=options.target, graphs=1, time=None)
    ends_at = graph_break()
    try:
        report, compiled = _rewrite_and_compile(gm, example_inputs, options, settings)
        failed = False
    except TorchDynamoException:
        raise
    except OptionError as error:
        raise visible(error) from None
    except UncapturableError as error:
        compiled, failed = None, False
        report.notes.append(f"this graph{_norms_in(gm)} is left to Inductor: {error}")
    except Exception as error:
        compiled, failed = None, True
        _explain_fallback(error, report, gm)
    report.breaks += ends_at
    record(report)
    log.info("%s", report)
    if not failed:
        _expect(report, options)
    return compiled or run_inner(gm, example_inputs, options, settings)


def _checked(mode: str | None, given: Mapping[str, Any] | None) -> tuple[Options, dict[str, Any]]:
    ours, inductors = split_options(given)
    options = Options.checked(ours, inductors)
    check_rules(options)
    return options, check_inductor(options, mode)


def _expect(report: Report, options: Options) -> None:
    try:
        check_expectation(report, options)
    except NormfuseError as error:
        raise visible(error) from None


@dataclass(frozen=True)
class RewrittenGraph:
    """A Dynamo graph after the pipeline; ``wide`` is the original in float64, when it was asked for."""

    program: Program
    folded: list[Folded]
    report: Report
    fake_mode: FakeTensorMode
    wide: GraphModule | None = None

    @property
    def is_changed(self) -> bool:
        return any(site.action != "kept" for site in self.report.sites)


def rewrite_graph(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, observer: Observer | None = None
) -> RewrittenGraph:
    """Capture a Dynamo graph and run the pipeline on the capture; ``gm`` stays as it is.

    ``observer`` watches where no norm is verified by itself, for which the pipeline runs several times.
    """
    with unnoticed():
        return _rewritten(gm, example_inputs, options, observer)


def _rewritten(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, observer: Observer | None
) -> RewrittenGraph:
    started = time.perf_counter()
    program, fake_mode = capture(gm, example_inputs)
    program.doubted = doubted(gm)
    wide = widen(program.gm) if options.verify == "output" else None
    if options.by_sites:
        program, report, folded = rewrite_verified(program, options, example_inputs)
    else:
        report, folded = run_pipeline(program, options, observer)
    hint_at_no_grad(program, report)
    report.seconds = time.perf_counter() - started
    return RewrittenGraph(program, folded, report, fake_mode, wide)


def _rewrite_and_compile(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, settings: Mapping[str, Any]
) -> tuple[Report, Callable[..., Any] | None]:
    """The report, and the compiled graph; None when there is nothing to change."""
    rewritten = rewrite_graph(gm, example_inputs, options)
    ready = _ready(gm, rewritten)
    frozen = _frozen(gm, ready, rewritten, example_inputs, options, settings)
    if frozen is not None or not rewritten.is_changed:
        return rewritten.report, frozen
    started = time.perf_counter()
    tensors = ready.slots.tensors(example_inputs)
    _check(gm, rewritten, example_inputs, tensors)
    fakes = [_fake(tensor, rewritten.fake_mode) for tensor in (*tensors, *ready.constants)]
    rewritten.report.seconds += time.perf_counter() - started
    with autocast_off():
        compiled = run_inner(ready.module, [*example_inputs, *fakes], options, settings)
    if is_autocast_enabled():
        compiled = without_autocast(compiled)
    return rewritten.report, FoldedCall(compiled, ready.slots, ready.constants, gm, compiled_again())


@dataclass(frozen=True)
class _Ready:
    """A graph for Inductor: it takes the inputs, what ``slots`` folds of them, and ``constants``."""

    module: GraphModule
    slots: Slots
    folded: tuple[Node, ...] = ()
    constants: tuple[torch.Tensor, ...] = ()


def _ready(gm: GraphModule, rewritten: RewrittenGraph) -> _Ready:
    """The rewritten graph, or the one that Dynamo made where nothing was rewritten."""
    if not rewritten.is_changed:
        return _Ready(gm, Slots(()))
    program, folded = rewritten.program, rewritten.folded
    slots = Slots([_slot(one, program) for one in folded], [_asked(p, program) for p in program.premises])
    module, added, constants = lift_constants(program.gm)
    nodes = [one.node for one in folded]
    hand_on_marks(gm, module, [*nodes, *added])
    return _Ready(module, slots, tuple(nodes), tuple(constants))


def _check(
    gm: GraphModule, rewritten: RewrittenGraph, example_inputs: Sequence[Any], folded: Sequence[torch.Tensor]
) -> None:
    if rewritten.wide is not None and rewritten.is_changed:
        check_output(gm, rewritten.wide, rewritten.program.gm, example_inputs, folded)


def _frozen(
    gm: GraphModule,
    ready: _Ready,
    rewritten: RewrittenGraph,
    example_inputs: Sequence[Any],
    options: Options,
    settings: Mapping[str, Any],
) -> FrozenCall | None:
    """The graph with its weights as constants, or None and, unless it is plain, a note that says why not."""
    program, report = rewritten.program, rewritten.report
    plan, reason = plan_freezing(options, settings, program, ready.folded, example_inputs, graph_name(gm))
    if plan is None:
        if reason:
            report.notes.append(f"a graph is compiled without its weights in it: {reason}")
        return None
    state = _state(graph_name(gm), plan, ready.slots, program, example_inputs)
    tensors = ready.slots.tensors(example_inputs)
    _check(gm, rewritten, example_inputs, tensors)
    given = [*example_inputs, *tensors, *ready.constants]
    first = len(example_inputs) + len(tensors)
    values = {place: given[place] for place in (*plan.places, *range(first, len(given)))}
    module, kept = with_constants(ready.module, values)
    fakes = [_fake(v, rewritten.fake_mode) if p >= len(example_inputs) else v for p, v in enumerate(given)]
    tuned = settings_for(plan.products, settings)
    with autocast_off(), torch.no_grad(), quiet(tuned):
        compiled = run_inner(module, [fakes[p] for p in kept], options, tuned)
    if is_autocast_enabled():
        compiled = without_autocast(compiled)
    state.compiled = compiled
    report.frozen, report.frozen_bytes, report.copied_bytes = 1, plan.bytes, 0
    return FrozenCall(state, kept, gm, compiled_again())


def _state(
    graph: str, plan: Freezing, slots: Slots, program: Program, example_inputs: Sequence[Any]
) -> FrozenWeights:
    """The weights that the constants are made of, as they are now."""
    inputs = program.inputs
    places = sorted(slots.places | {p for p in plan.places if p < len(inputs)})
    owners = {id(o): o for p in places if (o := inputs[p].owner) is not None}
    watched = {i: inputs[p].owner for i, p in enumerate(places) if _is_watched(inputs[p].node, program)}
    sources = [example_inputs[p] for p in places]
    state = FrozenWeights(graph, places, sources, list(owners.values()), watched)
    state.rows, state.bytes = plan.rows, plan.bytes
    return state


def _slot(one: Folded, program: Program) -> Slot:
    positions = {i.node: p for p, i in enumerate(program.inputs)}
    owners = [program.inputs[positions[s]].owner for s in one.sources]
    watched = {i: owners[i] for i, s in enumerate(one.sources) if _is_watched(s, program)}
    return Slot(
        one.recipe, [positions[s] for s in one.sources], [o for o in owners if o is not None], watched
    )


def _is_watched(source: Node, program: Program) -> bool:
    """Whether a batch norm in training may update a source unseen, be it in a corner of a larger buffer."""
    found = program.weights[source]
    if source in program.statistics:
        return True
    owner = None if found.owner is None else found.owner()
    is_buffer = found.role is Role.BUFFER and found.value.is_floating_point()
    return is_buffer and can_watch(found.value, owner)


def _asked(premise: Premise, program: Program) -> Asked:
    positions = {i.node: p for p, i in enumerate(program.inputs)}
    return Asked(premise, tuple(tuple(positions[s] for s in sources) for sources in premise.sources))


def _fake(tensor: Any, fake_mode: FakeTensorMode) -> Any:
    """A stand-in of fixed size, whatever the user asked for the sizes of inputs."""
    return fake_mode.from_tensor(tensor, static_shapes=True)


def _norms_in(gm: GraphModule) -> str:
    """Norms that nothing is known of but that they are called."""
    called = [str(getattr(n.target, "__name__", "")) for n in gm.graph.nodes if n.op == "call_function"]
    count = sum(name in _NORMS for name in called)
    return f", with {count} {'norm' if count == 1 else 'norms'} in it," if count else ""


_NORMS = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm")


def _explain_fallback(error: Exception, report: Report, gm: GraphModule) -> None:
    if is_strict():
        raise error
    report.notes.append(f"this graph{_norms_in(gm)} was not analysed and is left to Inductor: {cause(error)}")
    warn_user(
        f"normfuse left this graph to Inductor, whose result is used: {cause(error)}. "
        "Set NORMFUSE_STRICT=1 to see where it comes from."
    )
    log.info("fallback", exc_info=error)
