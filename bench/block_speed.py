"""A pre-norm transformer of two layers on the device that is here, by what runs its norms.

The same model compiled by Inductor with ``max-autotune``, by normfuse as it measures and chooses, with the
factors deferred wherever they can be, and by Inductor without norms, which is another function and the lower
bound. Each is one CUDA graph; they take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

import normfuse
from bench.gpu_models import MODELS, inputs
from bench.plain_table import aligned
from bench.subjects import randomized
from normfuse.clock import clock_of
from normfuse.errors import cause

__all__ = ["block_table", "measure_blocks"]

#: Most telling first: what comes after the time is over is left out, and said to be.
WIDTHS = (4096, 768, 8192, 2048)
ROWS = {"decode": 1, "prefill": 4096}
_MODE = "max-autotune-no-cudagraphs"
_ROUNDS = 15


def measure_blocks(until: float, device: str = "cuda") -> list[dict[str, Any]]:
    """One entry for each size, until ``time.monotonic()`` is past ``until``."""
    sizes = [(name, work, width) for width in WIDTHS for work in ROWS for name in MODELS]
    return [_tried(*size, device, until) for size in sizes]


def _tried(name: str, work: str, width: int, device: str, until: float) -> dict[str, Any]:
    """What fails does not keep the other sizes from being measured."""
    empty = {"model": name, "work": work, "d": width, "milliseconds": {}, "norms": []}
    if time.monotonic() >= until:
        return empty
    try:
        return _measured(name, work, width, device)
    except Exception as error:
        return {**empty, "error": cause(error)}


def _measured(name: str, work: str, width: int, device: str) -> dict[str, Any]:
    def compiled(backend: Any = "inductor", lower: str = "", **form: Any) -> Callable[..., Any]:
        """With weights of its own, as no contender should find those of another in a cache."""
        model = randomized(MODELS[name](width, 2, **form).to(device, torch.bfloat16))
        if backend == "inductor":
            return torch.compile(model, mode=_MODE)
        return torch.compile(
            model, backend=backend, options={"normfuse.mode": _MODE, "normfuse.lower": lower}
        )

    torch._dynamo.reset()
    ways = {
        "inductor": compiled(),
        "normfuse": compiled(normfuse.normfuse_backend, "auto"),
        "deferred": compiled(normfuse.normfuse_backend, "deferred"),
        "norms deleted": compiled(norm=nn.Identity),
    }
    given = [one.to(device) for one in inputs(name, ROWS[work])]
    with torch.no_grad():
        for way in ways.values():
            way(*given)
        clocks = {way: clock_of(partial(run, *given), given[0].device) for way, run in ways.items()}
        times = [{way: clock() for way, clock in clocks.items()} for _ in range(_ROUNDS)]
    best = {way: round(1e3 * median(one[way] for one in times), 5) for way in ways}
    norms = [site.lowering for site in normfuse.last_report(ways["normfuse"]).sites]
    return {"model": name, "work": work, "d": width, "milliseconds": best, "norms": norms}


def block_table(found: list[dict[str, Any]]) -> str:
    """Milliseconds, and what normfuse chose for the norms."""
    header = ("model", "work", "d", "block", "ms", "share of inductor", "norms")
    return aligned(header, (line for one in found for line in _lines(one)))


def _lines(one: dict[str, Any]) -> list[tuple[object, ...]]:
    times, place = one["milliseconds"], (one["model"], one["work"], one["d"])
    if not times:
        return [(*place, one.get("error", "left out, since the time was over"), "", "", "")]
    said = {"normfuse": "; ".join(one["norms"])}
    return [
        (*place, way, f"{time:.4f}", f"{time / times['inductor']:.3f}", said.get(way, ""))
        for way, time in times.items()
    ]
