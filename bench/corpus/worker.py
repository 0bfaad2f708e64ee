"""One architecture, from its name to its row, in a process with a limit on memory and time."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.corpus.capturing import by_dynamo, by_export
from bench.corpus.compiling import by_compile
from bench.corpus.configs import configs_of
from bench.corpus.inputs import inputs_of
from bench.corpus.models import build
from bench.corpus.rewriting import by_rewrite
from bench.corpus.running import sentence
from bench.corpus.truth import called_norms

__all__ = ["row", "run_one", "runnable"]

Row = dict[str, Any]
MEMORY = 9 << 30
BUILDING = 15.0


def run_one(model_type: str, routes: list[str], target: Path, seconds: int, recipe: str = "") -> None:
    """Write the row of one architecture to ``target``; the process dies with what exceeds the limits.

    ``recipe`` is the one to try first.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    signal.alarm(20 * seconds)
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    known = json.loads(target.read_text()) if target.exists() else {}
    made = row(model_type, routes, known, lambda r: _write(target, r), recipe)
    _write(target, made)


def _write(target: Path, made: dict[str, Any]) -> None:
    part = target.with_suffix(".part")
    part.write_text(json.dumps(made, indent=1))
    part.replace(target)


def row(
    model_type: str, routes: list[str], known: dict[str, Any], save: Callable[[dict[str, Any]], None],
    recipe: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Everything that is known about one architecture; ``save`` is called after each step."""
    made: dict[str, Any] = {**known, "architecture": model_type}
    found = runnable(model_type, recipe)
    if isinstance(found, str):
        return made | {"reason": found}
    recipe, model, inputs, calls = found
    made |= {"recipe": recipe, "calls": [[p, c, n] for (p, c), n in sorted(calls.items())]}
    save(made | {"reason": "the capture took too long or too much memory"})
    for route in routes:
        if route in _CALLED:
            made[route] = _called(route, model, inputs, partial(_save_route, save, made, route))
            continue
        made[route] = _captured(route, model, inputs, [p for p, _ in calls])
        save(made)
    made.pop("reason", None)
    return made


def _save_route(save: Callable[[Row], None], made: Row, route: str, found: Row) -> None:
    save(made | {route: found})


def runnable(model_type: str, wanted: str = "") -> Any:
    """The first recipe that runs, ``wanted`` before all others, or what went wrong with the first one."""
    started, first = time.process_time(), ""
    for recipe, config in sorted(configs_of(model_type), key=lambda one: one[0] != wanted):
        try:
            model = build(config)
        except Exception as error:
            first = first or sentence(error)
            continue
        for inputs in inputs_of(model):
            try:
                with torch.no_grad(), called_norms(model) as calls:
                    model(**inputs)
                return recipe, model, inputs, calls
            except Exception as error:
                first = first or sentence(error)
        if time.process_time() - started > BUILDING:
            break
    return f"no recipe runs: {first or 'no configuration can be made'}"


def _captured(route: str, model: torch.nn.Module, inputs: dict[str, Any], norms: list[str]) -> dict[str, Any]:
    started = time.process_time()
    try:
        score, modules, *rest = (by_export if route == "export" else by_dynamo)(model, inputs)
    except Exception as error:
        return {"reason": sentence(error)}
    score.silent_modules = [p for p in norms if not any(m == p or m.startswith(f"{p}.") for m in modules)]
    graphs = {"graphs": rest[0]} if rest else {}
    return score.to_dict() | graphs | {"seconds": round(time.process_time() - started, 1)}


def _called(route: str, model: torch.nn.Module, inputs: Row, save: Callable[[Row], None]) -> Row:
    """The row of a model that is rewritten and called; what was running is written before it runs."""
    started = time.process_time()

    def step(what: str, so_far: Row = _NOTHING) -> None:
        cause = f"the limit on time or memory was met in: {what}"
        save({**so_far, "status": "no end", "cause": cause})

    try:
        made = _CALLED[route](model, inputs, step)
    except Exception as error:
        made = {"status": "not judged", "cause": sentence(error)}
    return made | {"seconds": round(time.process_time() - started, 1)}


_NOTHING: Row = {}
_CALLED: dict[str, Callable[..., Row]] = {"compile": by_compile, "rewrite": by_rewrite}
