"""Kernels, library calls and bytes of a transformer block on a GPU, from the code that Inductor writes.

    python -m bench.gpu_codegen      # no device needed; bench/results/kernels/codegen.json

Counts, and times that follow from them by two assumed figures. No model is run, but weights are folded:
d = 8,192 takes about 14 GB of memory, and everything some 40 minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.gpu_count import BANDWIDTH, LAUNCH, Count, count
from bench.gpu_models import MODELS, inputs
from bench.gpu_stub import pretend
from bench.gpu_ways import FORWARD, TRAINING, traced
from bench.plain_table import aligned, store
from bench.subjects import randomized

__all__ = ["measure"]

WIDTHS = (768, 1024, 2048, 4096, 8192)
#: What is done, how many rows the stream has, and whether gradients are taken.
WORK = {"decode": (1, False), "prefill": (4096, False), "training": (8192, True)}
HEADER = ("model", "work", "d", "block", "kernels", "calls", "MB moved", "norms' MB", "norms' us")


def measure(
    widths: tuple[int, ...] = WIDTHS,
    work: tuple[str, ...] = tuple(WORK),
    models: tuple[str, ...] = tuple(MODELS),
    ways: tuple[str, ...] = tuple(FORWARD),
) -> list[dict[str, Any]]:
    """One entry for each way of each block; ``ways`` has to have the one without norms."""
    found = []
    for name in models:
        for d in widths:
            stacks = [_made(MODELS[name], d, layers) for layers in (1, 2)]
            for one in work:
                counts = _counts(name, stacks, ways, *WORK[one])
                found += [{"model": name, "d": d, "work": one, **_entry(way, counts)} for way in counts]
    return found


def _made(kind: Callable[[int, int], nn.Module], d: int, layers: int) -> nn.Module:
    return randomized(kind(d, layers).bfloat16())


def _counts(
    name: str, stacks: Sequence[nn.Module], ways: Sequence[str], rows: int, is_training: bool
) -> dict[str, Count]:
    """A block is what a model of two layers has beyond one of one layer."""
    counts, known = dict[str, Count](), TRAINING if is_training else FORWARD
    for way in known.keys() & set(ways):
        with torch.set_grad_enabled(is_training):
            graphs = [traced(one.train(is_training), inputs(name, rows), known[way]) for one in stacks]
            one, two = (count(graph.module, graph.values, is_training) for graph in graphs)
        counts[way] = two.minus(one)
    return {way: counts[way] for way in known if way in counts}


def _entry(way: str, counts: Mapping[str, Count]) -> dict[str, Any]:
    """The counts, and what the norms add to the block without them: bytes, and the time of these."""
    one, bare = counts[way], counts["norms deleted"]
    added = {
        "norm_bytes": one.moved - bare.moved,
        "norm_microseconds": round(1e6 * (one.seconds - bare.seconds), 3),
    }
    return {"block": way, **asdict(one), **added}


def _line(one: dict[str, Any]) -> tuple[object, ...]:
    moved = (one["kernel_bytes"] + one["call_bytes"]) / 1e6
    names = (one["model"], one["work"], one["d"], one["block"], one["kernels"], one["calls"])
    return (*names, f"{moved:.2f}", f"{one['norm_bytes'] / 1e6:.3f}", f"{one['norm_microseconds']:.2f}")


def main() -> None:
    """Print the table and store it."""
    pretend()
    found = measure()
    print(aligned(HEADER, map(_line, found)))
    path = Path(__file__).parent / "results" / "kernels" / "codegen.json"
    assumed = {"bytes_per_second": BANDWIDTH, "seconds_per_launch": LAUNCH}
    store(path, {"torch": torch.__version__, "assumed": assumed, "blocks": found})


if __name__ == "__main__":
    main()
