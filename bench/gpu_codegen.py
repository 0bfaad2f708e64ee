"""Kernels, library calls and bytes of a transformer block on a GPU, from the code that Inductor writes.

    python -m bench.gpu_codegen      # no device needed; bench/results/kernels/codegen.json

Counts, and times that follow from them by two assumed figures. Nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu_blocks import FORWARD, TRAINING, Block, shapes
from bench.gpu_count import Count, count
from bench.gpu_stub import pretend
from bench.plain_table import aligned, store

__all__ = ["estimate", "measure"]

WIDTHS = (768, 1024, 2048, 4096, 8192)
#: What is done, how many rows the stream has, and whether gradients are taken.
WORK = {"decode": (1, False), "prefill": (4096, False), "training": (8192, True)}
#: Assumed for an H100: bytes a second of the memory, and seconds from one kernel to the next in a graph.
BANDWIDTH, LAUNCH = 3.0e12, 1.3e-6
HEADER = ("work", "d", "block", "kernels", "calls", "MB moved", "norms' MB", "norms' us")


def measure(widths: tuple[int, ...] = WIDTHS, work: tuple[str, ...] = tuple(WORK)) -> list[dict[str, Any]]:
    """One entry for each way of each block."""
    found = []
    for name in work:
        rows, is_training = WORK[name]
        for d in widths:
            found += _ways(name, d, rows, is_training)
    return found


def _ways(name: str, d: int, rows: int, is_training: bool) -> list[dict[str, Any]]:
    blocks: dict[str, Block] = TRAINING if is_training else FORWARD
    counts = {way: count(block, shapes(rows, d), is_training) for way, block in blocks.items()}
    bare = counts["norms deleted"]
    return [
        {"work": name, "d": d, "rows": rows, "block": way, **asdict(one), **estimate(one, bare)}
        for way, one in counts.items()
    ]


def estimate(one: Count, bare: Count) -> dict[str, float]:
    """What the norms of a block add to one without them: bytes, and the time that these would take."""
    moved = one.moved - bare.moved
    seconds = moved / BANDWIDTH + (one.launches - bare.launches) * LAUNCH
    return {"norm_bytes": moved, "norm_microseconds": round(1e6 * seconds, 3)}


def _line(one: dict[str, Any]) -> tuple[object, ...]:
    moved = (one["kernel_bytes"] + one["call_bytes"]) / 1e6
    names = (one["work"], one["d"], one["block"], one["kernels"], one["calls"])
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
