"""Latency of eager, Inductor and normfuse over several fresh processes.

    python bench/latency.py decoder --processes 5

A second process has other addresses, another cache layout and other neighbours; what holds in all of
them is a difference, what holds in one is an anecdote. Single thread, random weights.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from normfuse.cli.comparison import BACKENDS, compile_with
from normfuse.cli.decoder import GPT2_SMALL, DecoderStep, decode_inputs
from normfuse.cli.digits import DigitTransformer
from normfuse.cli.timing import Ratio, Rounds, Schedule, merge, run_rounds, run_rounds_in_processes

__all__ = ["Subject", "rounds_of"]


class Subject(str, Enum):
    """What is timed."""

    DECODER = "decoder"
    DIGITS = "digits"


def rounds_of(subject: Subject, seconds: float) -> Rounds:
    """Time one model in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, args = _build(subject)
    contenders: dict[str, Any] = {"eager": model, **{b: compile_with(model, b) for b in BACKENDS}}
    with torch.no_grad():
        calls = {name: (lambda call=call: call(*args)) for name, call in contenders.items()}
        return run_rounds(calls, BACKENDS[0], Schedule(seconds=seconds))


def _build(subject: Subject) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if subject is Subject.DECODER:
        return DecoderStep(GPT2_SMALL).eval(), decode_inputs(GPT2_SMALL)
    return DigitTransformer().eval(), (torch.randn(40, 8, 8),)


def ratio_table(found: dict[str, Ratio], processes: int) -> Table:
    """Medians over the processes and their interval."""
    table = Table("contender", "time / Inductor's", "interval", "ms", title=f"{processes} processes")
    for name, ratio in found.items():
        interval = f"{ratio.low:.3f} .. {ratio.high:.3f}"
        table.add_row(name, f"{ratio.median:.3f}", interval, f"{1e3 * ratio.seconds:.3f}")
    return table


def main(
    subject: Annotated[Subject, typer.Argument()] = Subject.DECODER,
    processes: Annotated[int, typer.Option(min=0, help="0: this one, and print its rounds as JSON.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time per process, without compiling.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time SUBJECT in fresh processes and print the ratios to Inductor."""
    if processes == 0:
        print(rounds_of(subject, seconds).to_json())
        return
    own = [sys.executable, __file__, subject.value, "--processes", "0", "--seconds", str(seconds)]
    found = merge(run_rounds_in_processes(own, processes))
    Console().print(ratio_table(found, processes))
    if json_file is not None:
        json_file.write_text(json.dumps({k: asdict(r) for k, r in found.items()}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
