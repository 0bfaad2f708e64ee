"""One Dynamo graph through the pipeline and on to Inductor.

Whatever goes wrong in between, the user gets Inductor's result on the original graph and one
warning that names the cause; ``NORMFUSE_STRICT=1`` raises instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule

from normfuse.backends import inner
from normfuse.backends.doubts import doubted
from normfuse.backends.dynamo import capture, compiled_again, graph_break, visible
from normfuse.backends.evaluation import hint_at_no_grad
from normfuse.backends.folded_call import FoldedCall
from normfuse.backends.freeze import compile_frozen
from normfuse.backends.inner import check_inductor, without_autocast
from normfuse.backends.numbers import close_numbers, one_compilation
from normfuse.backends.ready import RewrittenGraph, check_rewritten, fake_of, ready
from normfuse.backends.session import record
from normfuse.capture.autocasting import is_autocast_enabled
from normfuse.errors import NormfuseError, OptionError, UncapturableError, cause, is_strict
from normfuse.options import Options, split_options
from normfuse.passes.catalogue import check_rules
from normfuse.passes.expectation import check_expectation
from normfuse.passes.observer import Observer
from normfuse.passes.pipeline import run_pipeline
from normfuse.report import Report
from normfuse.torch_compat import autocast_off, unnoticed
from normfuse.verify import widen
from normfuse.verify.sites import rewrite_verified
from normfuse.warn import warn_user

__all__ = ["RewrittenGraph", "compile_graph", "rewrite_graph"]

log = logging.getLogger("normfuse")


@one_compilation()
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
    report.notes += inner.unused_settings(options, settings)
    record(report)
    log.info("%s", report)
    if not failed:
        _expect(report, options)
    return compiled or inner.run_inner(gm, example_inputs, options, settings)


def _checked(mode: str | None, given: Mapping[str, Any] | None) -> tuple[Options, dict[str, Any]]:
    ours, inductors = split_options(given)
    options = Options.checked(ours, inductors)
    check_rules(options)
    settings = check_inductor(options, mode)
    return replace(options, mode=mode or options.mode), settings


def _expect(report: Report, options: Options) -> None:
    try:
        check_expectation(report, options)
    except NormfuseError as error:
        raise visible(error) from None


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
    notes = close_numbers(gm)
    program, fake_mode = capture(gm, example_inputs)
    program.notes += notes
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
    graph = ready(gm, rewritten)
    frozen = compile_frozen(gm, graph, rewritten, example_inputs, options, settings)
    if frozen is not None or not rewritten.is_changed:
        return rewritten.report, frozen
    started = time.perf_counter()
    tensors = graph.slots.tensors(example_inputs)
    rewritten.report.copied_bytes = graph.slots.copied_bytes
    check_rewritten(gm, rewritten, example_inputs, tensors)
    fakes = [fake_of(tensor, rewritten.fake_mode) for tensor in (*tensors, *graph.constants)]
    rewritten.report.seconds += time.perf_counter() - started
    with autocast_off():
        compiled = inner.run_inner(graph.module, [*example_inputs, *fakes], options, settings)
    if is_autocast_enabled():
        compiled = without_autocast(compiled)
    return rewritten.report, FoldedCall(compiled, graph.slots, graph.constants, gm, compiled_again())


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
