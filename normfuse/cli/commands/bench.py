"""``normfuse bench``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from normfuse.cli.options import DEBUG, DTYPE, HTML, JSON, QUIET, SOURCE, chosen
from normfuse.cli.outcome import one_line_errors
from normfuse.progress import Say, steps

__all__ = ["bench"]


class Contender(str, Enum):
    """As in :mod:`normfuse.benchmark.settings`, which is not imported before the command runs."""

    EAGER = "eager"
    INDUCTOR = "inductor"
    NORMFUSE = "normfuse"
    NO_NORMS = "norms deleted"
    FROZEN = "inductor, frozen"
    NO_NORMS_FROZEN = "norms deleted, frozen"
    ONNX = "onnxruntime"


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
    list[Contender] | None,
    typer.Option(
        "--contender",
        help="What to time; repeatable. Inductor always takes part. Without it: eager, normfuse and "
        "'norms deleted'.",
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
    html: HTML = None,
    quiet: QUIET = False,
    debug: DEBUG = False,
) -> None:
    """Time SRC eager, under Inductor, under normfuse, and with its norms deleted: the most there is to gain.

    All of them run in every round, in changing order, in several processes; figures are ratios to Inductor's
    time in the same round, with the interval that holds the true median 19 times in 20 (from six processes
    on; with fewer, as often as the caption says). The last row is Inductor against itself: a difference
    smaller than that is none. An estimate of the time it takes follows the first measurement.
    """
    with one_line_errors(debug):
        from normfuse.benchmark.plot import check_plot
        from normfuse.benchmark.run import bench as measure
        from normfuse.benchmark.settings import BASELINE, CONTENDERS
        from normfuse.files import check_outputs

        check_outputs([json_file, html, plot], [])
        if plot is not None:
            check_plot(plot)
        named = {one.value for one in contender} if contender else CONTENDERS[:4]
        ordered = [c for c in CONTENDERS if c in {*named, BASELINE}]
        batches: list[int | None] = [*batch] if batch else [None]
        total = len(batches) * (processes + cost_runs * len(ordered))
        plan = _plan(len(batches) * processes, seconds, len(batches) * cost_runs * len(ordered))
        with steps(quiet, total) as say:
            if not quiet:
                say = _after(plan, say)
            result = measure(
                source, batch_sizes=batches, processes=processes, cost_runs=cost_runs, progress=say,
                training=training, device=device, dtype=chosen(dtype), threads=threads, seconds=seconds,
                contenders=ordered,
            )  # fmt: skip
        result = replace(result, command=shlex.join(["normfuse", *sys.argv[1:]]))
        if not quiet:
            typer.echo(str(result))
        if json_file is not None:
            result.save(json_file)
        if html is not None:
            result.to_html(html)
        if plot is not None:
            result.plot(plot)


def _plan(processes: int, seconds: float, calls: int) -> str:
    """What is going to happen, since it takes minutes for the smallest network."""
    from normfuse.benchmark.remaining import duration

    one = "process" if processes == 1 else "processes"
    first = f", after {calls} first calls that compile from scratch" if calls else ""
    return (
        f"{processes} {one} of {seconds:g} seconds{first}: at least {duration(processes * seconds)}, and the "
        "time to compile on top; --processes, --seconds and --cost-runs make it shorter"
    )


def _after(text: str, say: Say) -> Say:
    """``say``, with a line of its own ahead of the first step, when nothing can be wrong any more."""
    ahead = [text]

    def announced(step: str) -> None:
        while ahead:
            typer.echo(ahead.pop(), err=True)
        say(step)

    return announced
