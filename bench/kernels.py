"""The kernels of ``normfuse.kernels``: what the compiler makes of them, and how fast they are.

    python -m bench.kernels --compile      # no device needed; bench/results/kernels/compile.json
    python -m bench.kernels --gpu          # on a CUDA device; bench/results/kernels/gpu.json

Needs PyTorch and Triton alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path

from bench.kernel_compile import SHARED_LIMIT, SPILL_LIMIT, Made, make
from bench.kernel_subjects import DTYPES, FORMS, TARGETS, WIDTHS, Subject, linear_subjects, norm_subjects
from bench.plain_table import aligned, store

__all__ = ["everything", "table"]

RESULTS = Path(__file__).parent / "results" / "kernels"
#: Rows, inputs and outputs of the products: a decode step, a short prompt, a long one.
PRODUCTS = ((1, 4096, 4096), (64, 4096, 4096), (512, 4096, 11008), (8192, 4096, 4096))
HEADER = (
    "kernel",
    "width",
    "dtype",
    "sm",
    "rows",
    "warps",
    "registers",
    "spilled",
    "shared",
    "16-byte loads",
    "stores",
)


def everything() -> Iterator[Subject]:
    """All kernels at all widths and dtypes."""
    for dtype in DTYPES:
        for form in FORMS:
            for width in WIDTHS:
                yield from norm_subjects(form, width, dtype)
        for adds, precision in product((False, True), ("ieee", "tf32")[: 1 + (dtype == "float32")]):
            for rows, width, outputs in PRODUCTS:
                yield from linear_subjects(rows, width, outputs, dtype, adds, precision)


def table(found: list[Made]) -> str:
    """One line a kernel."""
    return aligned(HEADER, map(_line, found))


def _line(one: Made) -> tuple[object, ...]:
    loads, stores = f"{one.vector_loads} of {one.loads}", f"{one.vector_stores} of {one.stores}"
    name = (one.kernel, one.width, one.dtype, one.target)
    return (*name, one.rows, one.warps, one.registers, one.stack, one.shared, loads, stores)


def _compile() -> None:
    import triton

    found = [make(subject, target) for subject in everything() for target in TARGETS]
    print(table(found))
    spilled, most = sum(one.stack > 0 for one in found), max(one.stack for one in found)
    bad = sum(one.stack > SPILL_LIMIT or one.shared > SHARED_LIMIT[one.target] for one in found)
    print(f"{len(found)} kernels; {spilled} spill at most {most} bytes a thread; {bad} break a limit")
    store(RESULTS / "compile.json", {"triton": triton.__version__, "kernels": [asdict(one) for one in found]})


def _gpu(seconds: float) -> None:
    """Blocks first, since they decide; what does not fit into the time is left out."""
    from bench.block_speed import block_table, measure_blocks
    from bench.kernel_speed import measure, speed_table

    started = time.monotonic()
    blocks = measure_blocks(started + 0.6 * seconds)
    print(block_table(blocks))
    store(RESULTS / "gpu.json", {"blocks": blocks})
    found = measure(started + seconds)
    print(speed_table(found))
    store(RESULTS / "gpu.json", {**found, "blocks": blocks})
    failed = [one for one in (*blocks, *found["contests"]) if "error" in one]
    if failed:
        raise SystemExit(f"{len(failed)} measurements failed; the others are in {RESULTS / 'gpu.json'}")


def main() -> None:
    """Print tables and store them as JSON."""
    parser = argparse.ArgumentParser(description="Compile or measure the kernels of normfuse.kernels.")
    parser.add_argument("--compile", action="store_true", help="compile for devices that are not here")
    parser.add_argument("--gpu", action="store_true", help="measure on the CUDA device that is here")
    parser.add_argument("--seconds", type=float, default=200.0, help="start no measurement later than that")
    chosen = parser.parse_args()
    if not (chosen.compile or chosen.gpu):
        parser.error("say --compile, --gpu, or both")
    if chosen.compile:
        _compile()
    if chosen.gpu:
        _gpu(chosen.seconds)


if __name__ == "__main__":
    main()
