"""The kernels of ``normfuse.kernels``: what the compiler makes of them, and how fast they are.

    python -m bench.kernels --compile      # no device needed; bench/results/kernels/compile.json
    python -m bench.kernels --gpu          # on a CUDA device; bench/results/kernels/gpu.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.kernel_compile import SHARED_LIMIT, Made, make
from bench.kernel_subjects import DTYPES, FORMS, TARGETS, WIDTHS, Subject, linear_subjects, norm_subjects

__all__ = ["everything", "table"]

RESULTS = Path(__file__).parent / "results" / "kernels"
#: Rows, inputs and outputs of the products: a decode step, a short prompt, a long one.
PRODUCTS = ((1, 4096, 4096), (1, 1024, 3072), (64, 4096, 4096), (512, 4096, 11008), (8192, 4096, 4096))


def everything() -> Iterator[Subject]:
    """All kernels at all widths and dtypes."""
    for dtype in DTYPES:
        for form in FORMS:
            for width in WIDTHS:
                yield from norm_subjects(form, width, dtype)
        seen = set()
        for rows, width, outputs in PRODUCTS:
            for subject in linear_subjects(rows, width, outputs, dtype):
                if (subject.name, width) not in seen:
                    seen.add((subject.name, width))
                    yield subject


def table(found: list[Made]) -> Table:
    """One line a kernel, with what breaks a limit in red."""
    names = ("kernel", "width", "dtype", "sm", "warps", "registers", "spilled", "shared", "16-byte loads", "stores")
    shown = Table(*names)
    for one in found:
        cells = (one.kernel, one.width, one.dtype, one.target, one.warps, one.registers, one.stack, one.shared)
        loads, stores = f"{one.vector_loads} of {one.loads}", f"{one.vector_stores} of {one.stores}"
        bad = one.stack > 0 or one.shared > SHARED_LIMIT[one.target]
        shown.add_row(*map(str, cells), loads, stores, style="red" if bad else None)
    return shown


def _compile(console: Console) -> None:
    import triton

    found = [make(subject, target) for subject in everything() for target in TARGETS]
    console.print(table(found))
    spilled = sum(one.stack > 0 for one in found)
    crowded = sum(one.shared > SHARED_LIMIT[one.target] for one in found)
    console.print(f"{len(found)} kernels; {spilled} spill registers, {crowded} exceed the shared memory")
    _store("compile.json", {"triton": triton.__version__, "kernels": [asdict(one) for one in found]})


def _gpu(console: Console) -> None:
    from bench.kernel_speed import measure, speed_table

    found = measure()
    console.print(speed_table(found))
    _store("gpu.json", found)


def _store(name: str, found: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = {key: value for key, value in found.items() if not isinstance(value, list)}
    lists = {key: value for key, value in found.items() if isinstance(value, list)}
    body = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items()]
    for key, value in lists.items():
        lines = ",\n".join(f"    {json.dumps(one)}" for one in value)
        body.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
    (RESULTS / name).write_text("{\n" + ",\n".join(body) + "\n}\n", encoding="utf-8")


def main(
    compile_all: Annotated[bool, typer.Option("--compile", help="Compile for devices that are not here.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Measure on the CUDA device that is here.")] = False,
) -> None:
    """Print tables and store them as JSON."""
    if not (compile_all or gpu):
        raise typer.BadParameter("say --compile, --gpu, or both")
    console = Console(width=None if Console().is_terminal else 140)
    if compile_all:
        _compile(console)
    if gpu:
        _gpu(console)


if __name__ == "__main__":
    typer.run(main)
