"""The whole latency suite, and the page that says where normfuse wins, ties and loses.

    python -m bench.suite --results bench/results/latency --page docs/benchmarks.md

One file for each model, dtype and number of threads is written as soon as it is measured, so an interrupted
run can go on with ``--missing``.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.page import write_page
from bench.subjects import SUBJECTS
from normfuse.benchmark.run import bench
from normfuse.benchmark.settings import BASELINE, CONTENDERS, ONNX

__all__ = ["measure"]


def measure(
    name: str,
    results: Path,
    *,
    training: bool,
    sizes: tuple[int, ...] | None = None,
    rivals: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """Measure one model, at its own batch sizes or these, and store the figures with the command.

    ``rivals`` are the contenders beside the baseline; all that can take part without any.
    """
    sizes = sizes or SUBJECTS[name]
    source = f"bench.subjects:{name}"
    options = {"threads": 1, **options}
    rivals = (BASELINE, *rivals) if rivals else _rivals(training, options.get("dtype"))
    found = bench(source, batch_sizes=sizes, training=training, progress=_say, contenders=rivals, **options)
    words = ["normfuse", "bench", source]
    words += [word for size in sizes for word in ("--batch", str(size))]
    named = [] if training else [rival for rival in rivals if rival != BASELINE]
    words += [word for rival in named for word in ("--contender", rival)]
    words += [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = shlex.join(words + (["--training"] if training else []))
    results.mkdir(parents=True, exist_ok=True)
    replace(found, command=command).save(_file(results, name, training=training, **options))
    Console().print(str(found), highlight=False, markup=False, emoji=False)


def _rivals(training: bool, dtype: str | None) -> tuple[str, ...]:
    if training:
        return CONTENDERS[:4]
    return tuple(name for name in CONTENDERS if name != ONNX or (dtype is None and _has_onnx()))


def _file(results: Path, name: str, *, training: bool, **options: Any) -> Path:
    parts = [name, options.get("dtype"), f"{options['threads']}-threads" if options["threads"] > 1 else None]
    return results / f"{'-'.join(part for part in (*parts, 'training' if training else None) if part)}.json"


def _has_onnx() -> bool:
    return find_spec("onnxruntime") is not None and find_spec("onnxscript") is not None


def _say(text: str) -> None:
    Console(stderr=True).print(f"  {text}", highlight=False)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="All without any.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("bench/results/latency"),
    page: Annotated[Path | None, typer.Option(help="Write the page of all stored figures here.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes per model and batch size.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of one process.")] = 10.0,
    cost_runs: Annotated[int, typer.Option(min=0, help="For compile time and memory.")] = 1,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch sizes; each model's own without any.")
    ] = None,
    training: Annotated[bool, typer.Option("--training")] = False,
    dtype: Annotated[str | None, typer.Option(help="Convert models to it; their own without.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    contender: Annotated[list[str] | None, typer.Option(help="Beside Inductor; all without any.")] = None,
    device: Annotated[str, typer.Option()] = "cpu",
    missing: Annotated[bool, typer.Option("--missing", help="Leave out models that have a file.")] = False,
) -> None:
    """Measure the named models, store their figures, and write the page."""
    for name in names if names is not None else SUBJECTS:
        options = {"processes": processes, "seconds": seconds, "cost_runs": cost_runs, "device": device}
        options |= {"threads": threads} | ({} if dtype is None else {"dtype": dtype})
        if missing and _file(results, name, training=training, **options).exists():
            continue
        _say(name)
        sizes, rivals = tuple(batch or ()), tuple(contender or ())
        measure(name, results, training=training, sizes=sizes, rivals=rivals, **options)
    if page is not None:
        write_page(results, page)


if __name__ == "__main__":
    typer.run(main)
