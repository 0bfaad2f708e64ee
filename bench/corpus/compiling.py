"""One call of a model compiled with normfuse, strictly, beside the model itself; whose failure it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import normfuse
import normfuse.backends.compile  # so that a process that forks has Dynamo already
from bench.corpus.distance import Judgement, judgement
from bench.corpus.running import is_settled, same_bits, sentence, tensors_of

__all__ = ["by_compile"]

Row = dict[str, Any]
OPTIONS = {"normfuse.inner": "eager"}


def by_compile(model: torch.nn.Module, inputs: dict[str, Any], step: Callable[[str], None]) -> Row:
    """The row of one model; ``step`` is told what is about to run, for the case that it never ends.

    Status ``ok``: the result is within the tolerance, or equal where no norm was changed. ``far``: it
    is not. ``strict fallback``: normfuse raised where a user would get Inductor's result.
    ``crash in normfuse``: a user would get the error too, and not from Dynamo alone. ``dynamo fails``
    and ``dynamo differs``: Dynamo with the backend ``eager`` does the same.
    """
    step("the model")
    if not is_settled(model, inputs):
        return {"status": "model differs from itself", "cause": "two calls from one seed are not equal"}
    wanted = tensors_of(model, inputs)
    if not wanted:
        return {"status": "nothing to compare", "cause": "the model returns no tensor"}
    step("normfuse")
    try:
        got = _compiled(model, inputs, "1")
    except Exception as error:
        return _failure(model, inputs, error, step)
    report = normfuse.last_report()
    row = _described(report)
    if same_bits(wanted, got):
        return {"status": "ok", "distance": 0.0} | row
    step("the distance")
    found = judgement(model, inputs, wanted, got)
    is_good = report_changes(report) and found.is_near
    return (_verdict(model, inputs, got, found, step) if not is_good else {"status": "ok"}) | {
        **row, "distance": found.distance, "tolerance": found.tolerance,
    }  # fmt: skip


def report_changes(report: normfuse.Report) -> bool:
    """Whether some norm is another than the model was written with."""
    return any(site.action != "kept" for site in report.sites)


def _verdict(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    got: list[torch.Tensor],
    found: Judgement,
    step: Callable[[str], None],
) -> Row:
    """Whether what is not right comes from Dynamo, whose graphs need not be bitwise the model."""
    step("dynamo alone")
    alone = _through_dynamo(model, inputs)
    if same_bits(alone, got):
        return {"status": "dynamo differs", "cause": "the backend eager gives the same bits as normfuse"}
    if judgement(model, inputs, alone, got).is_near and report_changes(normfuse.last_report()):
        return {"status": "dynamo differs", "cause": "near what the backend eager gives"}
    return {"status": "far", "cause": found.cause}


def _failure(
    model: torch.nn.Module, inputs: dict[str, Any], error: Exception, step: Callable[[str], None]
) -> Row:
    cause = sentence(error)
    step("dynamo alone")
    try:
        _through_dynamo(model, inputs)
    except Exception as alone:
        return {"status": "dynamo fails", "cause": sentence(alone)}
    step("normfuse, not strictly")
    try:
        _compiled(model, inputs, "0")
    except Exception:
        return {"status": "crash in normfuse", "cause": cause}
    return {"status": "strict fallback", "cause": cause} | _described(normfuse.last_report())


def _compiled(model: torch.nn.Module, inputs: dict[str, Any], strict: str) -> list[torch.Tensor]:
    torch._dynamo.reset()
    with _environment("NORMFUSE_STRICT", strict):
        return tensors_of(torch.compile(model, backend="normfuse", options=dict(OPTIONS)), inputs)


def _through_dynamo(model: torch.nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    torch._dynamo.reset()
    return tensors_of(torch.compile(model, backend="eager"), inputs)


def _described(report: normfuse.Report) -> Row:
    actions = Counter(site.action for site in report.sites)
    refused = Counter(site.refusal.code for site in report.sites if site.refusal is not None)
    return {
        "found": report.found,
        "after": report.after,
        "converted": actions["converted"],
        "folded": actions["folded"] + actions["merged"],
        "refused": dict(refused),
        "notes": report.notes,
        "graphs": report.graphs,
    }


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
