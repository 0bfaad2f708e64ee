"""What would happen to a model, without compiling it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from normfuse.backends.compile import rewrite_graph
from normfuse.backends.dynamo import graph_break
from normfuse.backends.freeze import note_freezing
from normfuse.backends.numbers import one_compilation
from normfuse.backends.ready import copied_bytes
from normfuse.errors import CaptureError, NormfuseError, cause
from normfuse.options import Options
from normfuse.passes.listings import Listings
from normfuse.passes.observer import Observer
from normfuse.report import Report
from normfuse.rewriting import as_program, check_module, explain_program
from normfuse.verify.isolation import copied_inputs, preserved_rng, preserved_state

__all__ = ["explain", "explain_stages", "explain_with"]

_numbers = itertools.count()


def explain(
    model: torch.nn.Module | Callable[..., Any] | ExportedProgram | str | Path, *args: Any, **kwargs: Any
) -> Report:
    """Which norms ``torch.compile(model, backend="normfuse")`` would find, and what would become of them.

    The model runs once on copies of the given inputs, eagerly; nothing is compiled. Its buffers and PyTorch's
    random state are as before afterwards; a parameter that its own forward writes to is written. A module in
    evaluation mode is explained as it would be compiled for inference, an exported program (or its file) as
    :func:`normfuse.rewrite` would rewrite it.

    Raises:
        InputError: for a model that is compiled already.
        CaptureError: when Dynamo cannot trace the model with these inputs.
    """
    return explain_with(Options(), model, args, kwargs)


def explain_with(
    options: Options,
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
) -> Report:
    """:func:`explain` under other options than the default ones, and watched."""
    if isinstance(model, (ExportedProgram, str, Path)):
        return explain_program(as_program(model), replace(options, lower="inductor"), observer)
    if isinstance(model, torch.nn.Module):
        check_module(model)
    report = Report(target=options.target)
    inference = isinstance(model, torch.nn.Module) and not model.training
    with torch.no_grad() if inference else contextlib.nullcontext():
        _run(model, functools.partial(_collect, report, options, observer), args, dict(kwargs or {}))
    return report


def explain_stages(
    options: Options, model: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[Report, str]:
    """:func:`explain_with`, and the text of each graph after each stage of the pipeline that changes it."""
    graphs = Listings()
    report = explain_with(options, model, args, kwargs, graphs)
    return report, str(graphs)


def _run(
    model: Callable[..., Any], backend: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    given, named = copied_inputs(tuple(args), kwargs)
    try:
        with preserved_rng(), preserved_state(model, parameters=False):
            torch.compile(_fresh_caller(model), backend=backend)(*given, **named)
    except NormfuseError:
        raise
    except Exception as error:
        raise CaptureError(f"the model cannot run with these inputs: {_innermost(error)}") from error


def _innermost(error: Exception) -> str:
    """The line that names the model's own error, which Dynamo wraps in many others."""
    wrapped = re.search(r"got (\w+\(.*\))", str(error))
    if wrapped:
        return wrapped[1]
    return cause(error)


@one_compilation()
def _collect(
    report: Report,
    options: Options,
    observer: Observer | None,
    gm: GraphModule,
    example_inputs: Sequence[Any],
) -> Callable[..., Any]:
    rewritten = rewrite_graph(gm, example_inputs, options, observer)
    found = rewritten.report
    found.breaks += graph_break()
    note_freezing(gm, rewritten, example_inputs, options)
    if found.copied_bytes:
        found.copied_bytes = copied_bytes(rewritten, example_inputs)
    report.merge(found)
    run: Callable[..., Any] = gm.forward
    return run


def _fresh_caller(model: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own, so that Dynamo's caches for the model stay untouched."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    code = call.__code__.replace(co_name=f"explain_{next(_numbers)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
