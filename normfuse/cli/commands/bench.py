"""``normfuse bench``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from normfuse.cli.options import DEBUG, DTYPE, JSON, QUIET, SOURCE
from normfuse.cli.outcome import one_line_errors
from normfuse.cli.progress import steps

__all__ = ["bench"]

BATCH = Annotated[
    list[int] | None,
    typer.Option(
        "--batch",
        min=1,
        metavar="N",
        help="Batch size; repeatable. A factory with a parameter batch_size is called with it, other inputs "
        "are repeated along their first axis. Without it: the example inputs.",
    ),
]
CONTENDER = Annotated[
    list[str] | None,
    typer.Option(
        "--contender",
        metavar="NAME",
        help="eager, normfuse, 'norms deleted', 'inductor, frozen' or onnxruntime; repeatable. "
        "Inductor always takes part. "
        "Without it: the first three.",
    ),
]


def bench(
    source: SOURCE,
    batch: BATCH = None,
    training: Annotated[
        bool, typer.Option("--training", help="Time a forward and backward pass instead of inference.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu, or cuda.")] = "cpu",
    dtype: DTYPE = None,
    contender: CONTENDER = None,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes that each time everything.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time of one process, without compiling.")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch; its default without.", show_default=False)
    ] = None,
    cost_runs: Annotated[
        int, typer.Option(min=0, help="Processes per contender for compile time and memory.")
    ] = 1,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the ratios to a .png or .svg file.")
    ] = None,
    json_file: JSON = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Time SRC eager, under Inductor, under normfuse, and with its norms deleted: the most there is to gain.

    All of them run in every round, in changing order, in several processes; figures are ratios to Inductor's
    time in the same round, with the interval that holds the true median 19 times in 20. The last row is
    Inductor against itself: a difference smaller than that is none.
    """
    with one_line_errors(debug):
        from normfuse.benchmark.plot import check_plot
        from normfuse.benchmark.run import bench as measure
        from normfuse.benchmark.settings import BASELINE, CONTENDERS
        from normfuse.files import check_writable

        if json_file is not None:
            check_writable(json_file)
        if plot is not None:
            check_plot(plot)
        chosen = set(contender or CONTENDERS[:4]) | {BASELINE}
        ordered = [*(c for c in CONTENDERS if c in chosen), *sorted(chosen - set(CONTENDERS))]
        batches: list[int | None] = [*batch] if batch else [None]
        total = len(batches) * (processes + cost_runs * len(ordered))
        with steps(quiet, total) as say:
            result = measure(
                source, batch_sizes=batches, processes=processes, cost_runs=cost_runs, progress=say,
                training=training, device=device, dtype=dtype, threads=threads, seconds=seconds,
                contenders=ordered,
            )  # fmt: skip
        result = replace(result, command=shlex.join(["normfuse", *sys.argv[1:]]))
        if not quiet:
            typer.echo(str(result))
        if json_file is not None:
            result.save(json_file)
        if plot is not None:
            result.plot(plot)
