"""A model rewritten offline in three dtypes, each beside the model itself in exact arithmetic.

Nothing is verified by normfuse on the way, so that a wrong rewrite shows. In float32 and bfloat16 the
figure is the error over the model's own (``normfuse.verify``), in float64 the relative distance of both
programs, with every cast inside widened. Decisions between close numbers are those of the model
(``bench.corpus.routing``).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

import normfuse
import normfuse.backends.compile  # so that a process that forks has Dynamo already
from bench.corpus.distance import relative
from bench.corpus.routing import Routes
from bench.corpus.running import sentence
from normfuse.capture.exported import export_model
from normfuse.errors import CaptureError
from normfuse.verify.comparing import Pair, compare
from normfuse.verify.equivalence import Equivalence
from normfuse.verify.oracles import ProgramOracle, oracle_of

__all__ = ["DTYPES", "EXACT", "by_rewrite"]

Row = dict[str, Any]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
#: Relative distance allowed in float64.
EXACT = 1e-11


def by_rewrite(model: torch.nn.Module, inputs: Row, step: Callable[[str, Row], None], **options: Any) -> Row:
    """What became of every norm in float32, and under each dtype how far the rewritten model is off.

    ``step`` is told what is about to run, and the row so far. A model that cannot be exported is compiled
    instead, with eager mode behind it; its tables then stay, and one centring may follow a lookup.
    ``options`` are those of ``normfuse.rewrite``.
    """
    row: Row = {"route": "export"}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        step(name, row)
        held, given = _cast(copy.deepcopy(model), inputs, dtype)
        if row["route"] == "export":
            try:
                row |= _exported(held, given, name, row, options)
                continue
            except CaptureError as error:
                if "found" in row:
                    row[name] = {"status": "not captured", "cause": sentence(error)}
                    continue
                row |= {"route": "dynamo", "why": sentence(error)}
        row |= _compiled(held, given, name, row, options)
    return row


def _exported(model: torch.nn.Module, given: Row, name: str, row: Row, options: Row) -> Row:
    """One dtype; the norms are described by the first one."""
    exported = export_model(model, (), given, None)
    try:
        rewritten = normfuse.rewrite(exported, **{"verify": "off", **options})
    except Exception as error:
        own = _own_fault(exported, given)
        return {name: {"status": "not captured" if own else "crash", "cause": own or sentence(error)}}
    described = {} if "found" in row else _described(rewritten.report)
    try:
        if name == "float64":
            return described | {name: _distance(exported, rewritten, given)}
        return described | {name: _ratio(exported, rewritten.program, given)}
    except Exception as error:
        return described | {name: {"status": "not judged", "cause": sentence(error)}}


def _own_fault(exported: ExportedProgram, given: Row) -> str:
    """Why a program does not run as it is, if so."""
    try:
        exported.module()(**given)
    except Exception as error:
        return f"the model itself fails in this dtype: {sentence(error)}"
    return ""


def _compiled(model: torch.nn.Module, given: Row, name: str, row: Row, options: Row) -> Row:
    torch._dynamo.reset()
    asked = {"normfuse.inner": "eager"} | {f"normfuse.{option}": value for option, value in options.items()}
    compiled = torch.compile(model, backend="normfuse", options=asked)
    try:
        found = _verdict(compare(model, compiled, (), given))
    except Exception as error:
        return {name: {"status": "not judged", "cause": sentence(error)}}
    return ({} if "found" in row else _described(normfuse.last_report())) | {name: found}


def _cast(
    model: torch.nn.Module, inputs: dict[str, Any], dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, Any]]:
    def cast(value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_real else value

    return model if dtype == torch.float32 else model.to(dtype), tree_map(cast, inputs)


def _ratio(reference: ExportedProgram, candidate: ExportedProgram, given: dict[str, Any]) -> Row:
    """The worst leaf's error over the model's own, and what is allowed there."""
    routes = Routes()
    pair = Pair(reference.module(), candidate.module(), oracle_of(reference))
    with routes.recording():
        original = pair.run_reference((), given)
    with routes.run():
        rewritten = pair.run_candidate((), given)
    changed = routes.changed
    reference_held, candidate_held = _Held(pair.reference, routes), _Held(pair.candidate, routes)
    held = Pair(reference_held, candidate_held, _HeldOracle(pair.oracle, routes))
    found = held.judged((), given, original, rewritten, False)
    return _verdict(found) | ({"routes": changed} if changed else {})


def _verdict(found: Equivalence) -> Row:
    worst = found.worst
    status = "ok" if found.ok else "far" if found.differs else "no yardstick"
    bad = [leaf for leaf in found.leaves if not (leaf.ok and leaf.judged)]
    cause = "; ".join(f"{leaf.path}: {leaf.figure} {leaf.reason}".strip() for leaf in bad)[:200]
    figures = {} if worst is None else {"ratio": worst.error_ratio, "allowed": worst.allowed}
    return {"status": status} | figures | ({"cause": cause} if cause else {})


def _distance(reference: ExportedProgram, rewritten: normfuse.Rewritten, given: dict[str, Any]) -> Row:
    """How far two programs are apart where every floating value is in float64."""
    routes, candidate = Routes(), rewritten.program
    one, other = ProgramOracle(reference), ProgramOracle(candidate)
    with routes.recording():
        wanted = one.values((), given, {})
    with routes.run():
        got = other.values((), given, {})
    changed = routes.changed
    distances = {path: relative(value, got[path]) for path, value in wanted.items()}
    worst = max(distances, key=lambda path: distances[path])
    row: Row = {"status": "ok", "distance": distances[worst]} | ({"routes": changed} if changed else {})
    if distances[worst] <= EXACT:
        return row
    if _has_narrow_weights(reference, candidate) or any(map(_is_folded_narrow, rewritten.report.sites)):
        return row | _ratio(reference, candidate, given)
    return row | {"status": "far", "cause": worst}


def _has_narrow_weights(reference: ExportedProgram, candidate: ExportedProgram) -> bool:
    """Whether a weight is new and narrower than float64: a model that reads it so, as some routers do."""
    made = (t for name, t in candidate.state_dict.items() if name not in reference.state_dict)
    return any(t.is_floating_point() and t.dtype != torch.float64 for t in made)


def _is_folded_narrow(site: normfuse.Site) -> bool:
    """Whether what was folded is computed in a narrower dtype than float64, as the model computes it."""
    is_offset = site.spec["weight_offset"] != 0 and site.spec["scale_dtype"] != "float64"
    is_whole = "fold_constants" in site.rules and site.spec["compute_dtype"] != "float64"
    return (bool(site.rules) and is_offset) or is_whole


class _Held(torch.nn.Module):
    """A program whose decisions are those of the first run."""

    def __init__(self, program: torch.nn.Module, routes: Routes) -> None:
        super().__init__()
        self.program, self.routes = program, routes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.routes.run():
            return self.program(*args, **kwargs)


class _HeldOracle:
    """An oracle whose decisions are those of the first run."""

    def __init__(self, oracle: Any, routes: Routes) -> None:
        self._oracle, self._routes = oracle, routes

    def values(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtypes: Mapping[str, torch.dtype],
        draw: int | None = None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        with self._routes.run():
            found: dict[str, torch.Tensor] = self._oracle.values(args, kwargs, dtypes, draw)
            return found


def _described(report: normfuse.Report) -> Row:
    stay = [s for s in report.sites if "recentre" in s.refusals and s.kind == "layer_norm"]
    folded = [s for s in report.sites if any(rule.startswith("fold") for rule in s.rules)]
    return {
        "found": report.found,
        "after": report.after,
        "converted": sum(s.action == "converted" for s in report.sites),
        "folded": len(folded),
        "centrings": report.centrings,
        "refused": dict(Counter(s.refusal.code for s in report.sites if s.refusal is not None)),
        "stay": [[s.module, s.refusals["recentre"].code, s.refusals["recentre"].message] for s in stay],
        "not_folded": [
            [s.module, rule, refusal.code, refusal.message]
            for s in report.sites for rule, refusal in s.refusals.items() if rule.startswith("fold")
        ],
        "notes": report.notes,
    }  # fmt: skip
