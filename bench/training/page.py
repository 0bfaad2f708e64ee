"""The page that compares the norms in training, from stored runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.training.plot import curves
from bench.training.run import NORMS
from normfuse.errors import InputError
from normfuse.files import write_text

__all__ = ["write_page"]

Run = Mapping[str, Any]
Points = Callable[[Sequence[Run]], list[tuple[float, float]]]
_SMOOTH = 20
_HEAD = """# Norms in training

The same small transformers, trained with each norm: the same seeds, batches, steps and learning rate,
converted from LayerNorm at the start by `normfuse.convert`. Written by `python -m bench.train_norms
--page`; do not edit.

Such small tasks say whether a norm trains, not which one is best: differences within the range of the seeds
mean nothing. *Fluctuation* is the mean of `abs(log(m_t / m_{t-1}))`, where `m` is the mean square of a
channel over a batch in front of a norm, over steps, channels and norms; *outlier* the largest `abs(x) /
rms` in front of any norm, in evaluation after training; *skipped* counts batches that UnifiedNorm's layers
left out. The pictures have means over seeds; norms count from the input to the output.
"""
_BASE = NORMS[0]


def write_page(results: Path, page: Path) -> list[Path]:
    """Write ``page``, and a picture beside it for each task.

    Raises:
        InputError: when there is no run.
    """
    runs: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(results.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs[run["task"]][run["norm"]].append(run)
    if not runs:
        raise InputError(f"{results} holds no run; python -m bench.train_norms makes them")
    written: list[Path] = []
    parts = [_HEAD]
    for task, by_norm in sorted(runs.items()):
        ordered = {norm: by_norm[norm] for norm in NORMS if norm in by_norm}
        drawn = _pictures(page.with_name(f"{page.stem}-{task}.svg"), ordered)
        written += drawn.values()
        links = [f"![{title} on {task}]({picture.name})" for title, picture in drawn.items()]
        parts.append(_section(task, ordered, links))
    return [write_text(page, "\n".join(parts)), *written]


def _pictures(path: Path, by_norm: Mapping[str, Sequence[Run]]) -> dict[str, Path]:
    """The pictures that the runs have figures for, by their titles."""
    drawn = {}
    for title, ending, x_name, points in _PICTURES:
        lines = {norm: points(_kept(runs)) for norm, runs in by_norm.items()}
        shown = {norm: line for norm, line in lines.items() if line}
        if shown:
            picture = path.with_stem(path.stem + ending)
            drawn[title] = write_text(picture, curves(shown, x_name, title.lower()))
    return drawn


def _by_step(name: str) -> Points:
    """Mean over seeds, smoothed over steps, of what runs hold for each step."""

    def points(runs: Sequence[Run]) -> list[tuple[float, float]]:
        kept = [run[name] for run in runs if name in run]
        length = min((len(values) for values in kept), default=0)
        return [
            (float(start), fmean(fmean(values[start : start + _SMOOTH]) for values in kept))
            for start in range(0, length - length % _SMOOTH, _SMOOTH)
        ]

    return points


def _by_norm(name: str) -> Points:
    """Mean over seeds of what runs hold for each norm."""

    def points(runs: Sequence[Run]) -> list[tuple[float, float]]:
        columns = zip(*(run[name].values() for run in runs), strict=True)
        return [(float(number), fmean(column)) for number, column in enumerate(columns, 1)]

    return points


#: Title, what the file's name ends with, what stands on the axis below, and the points of one norm's runs.
_PICTURES: tuple[tuple[str, str, str, Points], ...] = (
    ("Training loss", "", "step", _by_step("losses")),
    ("Fluctuation", "-steps", "step", _by_step("movements")),
    ("Fluctuation of each norm", "-fluctuation", "norm", _by_norm("fluctuation")),
    ("Largest outlier of each norm", "-outliers", "norm", _by_norm("outliers")),
)


def _section(task: str, by_norm: Mapping[str, Sequence[Run]], links: Sequence[str]) -> str:
    first = next(iter(by_norm.values()))[0]
    made = f"PyTorch {first['torch']}, Python {first['python']}, one thread"
    size = f"{first['steps']} steps, {first['parameters']} parameters with {first['norm']}"
    head = f"## {task}\n\n{size}; {made}. Medians over seeds (smallest .. largest).\n"
    rows = ["| norm | seeds | held-out loss | accuracy | fluctuation | outlier | skipped | seconds |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    rows += [_row(norm, runs) for norm, runs in by_norm.items()]
    return "\n".join([head, *rows, *_against_base(by_norm), *("\n" + link for link in links), ""])


def _against_base(by_norm: Mapping[str, Sequence[Run]]) -> list[str]:
    """Where the losses of all seeds lie on one side of those of the first norm."""
    losses = {norm: [run["evaluations"][-1]["loss"] for run in _kept(runs)] for norm, runs in by_norm.items()}
    base = losses.pop(_BASE, [])
    said = [f"{norm} {_place(some, base)}" for norm, some in losses.items() if some and base]
    return ["", f"Held-out losses beside those of {_BASE}: {', '.join(said)}."] if said else []


def _place(losses: Sequence[float], base: Sequence[float]) -> str:
    if max(losses) < min(base):
        return "lower with every seed"
    return "higher with every seed" if min(losses) > max(base) else "within the range of the seeds"


def _kept(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if not run["diverged"]]


def _row(norm: str, runs: Sequence[Run]) -> str:
    final = [run["evaluations"][-1] for run in _kept(runs)]
    lost = len(runs) - len(final)
    cells = [
        norm,
        f"{len(runs)}" + (f", {lost} diverged" if lost else ""),
        _spread([one["loss"] for one in final], ".3f"),
        _spread([100 * one["accuracy"] for one in final], ".1f", " %"),
        _spread([fmean(run["fluctuation"].values()) for run in runs], ".3f"),
        _spread([max(run["outliers"].values()) for run in runs], ".1f"),
        _spread([run["skipped_batches"] for run in runs], ".0f"),
        _spread([run["seconds"] for run in runs], ".0f"),
    ]
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float], form: str, unit: str = "") -> str:
    if not values:
        return ""
    low, middle, high = (format(v, form) for v in (min(values), median(values), max(values)))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} .. {high})"
