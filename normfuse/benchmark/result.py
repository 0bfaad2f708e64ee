"""The figures of a measurement, each with its interval, and what they say."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from normfuse.benchmark.measure import Cost
from normfuse.benchmark.settings import BASELINE, Settings
from normfuse.benchmark.timing import AGAIN, ENOUGH, Ratio, Rounds, median_interval, merge
from normfuse.files import json_text, write_text

__all__ = ["BatchResult", "BenchResult", "Figure"]

_CAPTION = (
    "Median ({interval}). A tie is within the noise floor, which is Inductor against itself. First call, "
    "with compiling, and peak memory come from processes of their own."
)


def _caption(processes: int) -> str:
    """Five processes or fewer say too little about others for an interval that holds 19 times in 20."""
    if processes == 1:
        interval = (
            "and the interval that holds the true one of this process 19 times in 20; others may differ"
        )
    elif processes < ENOUGH:
        chance = 100 * (1 - 2 * 0.5**processes)
        interval = (
            f"and the extremes of {processes} processes, which hold the true one {chance:.0f} times in 100"
        )
    else:
        interval = "and the interval that holds the true one 19 times in 20"
    return _CAPTION.format(interval=interval)


@dataclass(frozen=True)
class Figure:
    """A median, and two values between which the true one lies 19 times in 20."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(median(values), *median_interval(values))

    def show(self, factor: float = 1.0, digits: int = 3) -> str:
        """``1.234 (1.2 .. 1.3)``, in another unit by ``factor``."""
        middle, low, high = (f"{factor * v:.{digits}f}" for v in (self.median, self.low, self.high))
        return middle if low == middle == high else f"{middle} ({low} .. {high})"


@dataclass(frozen=True)
class BatchResult:
    """One batch size: every contender's time over Inductor's, and its own seconds.

    ``costs`` holds one entry per run of each contender.
    """

    batch_size: int | None
    ratios: Mapping[str, Ratio]
    seconds: Mapping[str, Figure]
    costs: Mapping[str, Sequence[Cost]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, batch_size: int | None, processes: Sequence[Rounds], costs: Mapping[str, Sequence[Cost]]
    ) -> BatchResult:
        """Sum up the rounds of several processes; of a single one, its rounds."""
        names = [name for name in processes[0].seconds if not name.endswith(AGAIN)]
        if len(processes) == 1:
            own = {name: list(processes[0].seconds[name]) for name in names}
        else:
            own = {name: [median(p.seconds[name]) for p in processes] for name in names}
        return cls(batch_size, merge(processes), {name: Figure.of(own[name]) for name in names}, costs)

    @property
    def noise(self) -> Ratio:
        """Inductor against itself."""
        return self.ratios[BASELINE + AGAIN]

    @property
    def floor(self) -> float:
        """How far from 1 the noise reaches, on either side: a smaller difference is none."""
        return max(1.0 - self.noise.low, self.noise.high - 1.0)

    def verdict(self, name: str) -> str:
        """``faster`` or ``slower`` when the whole interval lies beyond the noise floor; else ``tie``."""
        found = self.ratios[name]
        if found.high < 1.0 - self.floor:
            return "faster"
        return "slower" if found.low > 1.0 + self.floor else "tie"

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "noise_floor": self.floor,
            "time_over_inductor": {k: asdict(r) for k, r in self.ratios.items()},
            "verdicts": {k: self.verdict(k) for k in self.ratios if not k.endswith(AGAIN)},
            "seconds": {k: asdict(f) for k, f in self.seconds.items()},
            "costs": {k: [cost.to_dict() for cost in runs] for k, runs in self.costs.items()},
        }


@dataclass(frozen=True)
class BenchResult:
    """What :func:`normfuse.bench` found; prints as a table."""

    settings: Settings
    processes: int
    machine: Mapping[str, Any]
    batches: tuple[BatchResult, ...]
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with versions, hardware and the command."""
        settings = {k: v for k, v in asdict(self.settings).items() if k != "batch_size"}
        return {
            "command": self.command,
            "settings": {**settings, "processes": self.processes},
            "machine": dict(self.machine),
            "batches": [batch.to_dict() for batch in self.batches],
        }

    def save(self, path: str | Path) -> Path:
        """Write the figures as JSON; an existing file is replaced as a whole."""
        return write_text(path, json_text(self.to_dict()))

    def to_html(self, path: str | Path) -> Path:
        """Write the figures as one page, which needs no network; an existing file is replaced as a whole."""
        from normfuse.benchmark.page import bench_page

        rows = {place: _rows(batch) for place, batch in enumerate(self.batches)}
        return write_text(path, bench_page(self, _caption(self.processes), rows))

    def plot(self, path: str | Path) -> Path:
        """Draw the ratios to a ``.png`` or ``.svg`` file; needs ``pip install 'normfuse[bench]'``."""
        from normfuse.benchmark.plot import plot

        return plot(self, path)

    def __str__(self) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=110, color_system=None, highlight=False, emoji=False)
        for batch in self.batches:
            console.print(_table(batch, self))
        return stream.getvalue().rstrip()


def _table(batch: BatchResult, result: BenchResult) -> Table:
    what = "training step" if result.settings.training else "inference"
    size = "" if batch.batch_size is None else f", batch {batch.batch_size}"
    count = "1 process" if result.processes == 1 else f"{result.processes} processes"
    table = Table(
        "", "time / Inductor's", "", "ms", "first call (s)", "peak (MiB)",
        title=f"{escape(result.settings.source or 'model')}: {what}{size}, {count}", title_justify="left",
        caption=_caption(result.processes), caption_justify="left",
    )  # fmt: skip
    for row in _rows(batch):
        table.add_row(*row)
    return table


def _rows(batch: BatchResult) -> list[list[str]]:
    """The cells of a table; the last row is the noise floor."""
    rows = []
    for name, seconds in batch.seconds.items():
        ratio = batch.ratios.get(name)
        relative = "1" if ratio is None else Figure(ratio.median, ratio.low, ratio.high).show()
        verdict = "" if ratio is None else batch.verdict(name)
        rows.append([name, relative, verdict, seconds.show(1e3), *_cost_cells(batch.costs.get(name, ()))])
    noise = batch.noise
    return [*rows, ["noise floor", Figure(noise.median, noise.low, noise.high).show(), "", "", "", ""]]


def _cost_cells(runs: Sequence[Cost]) -> tuple[str, str]:
    if not runs:
        return "", ""
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    first = Figure.of([run.first_call for run in runs]).show(digits=2)
    return first, Figure.of(peaks).show(2**-20, 0) if peaks else ""
