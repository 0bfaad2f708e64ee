"""The page that compares the norms in training, from stored runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.training.plot import curves
from bench.training.run import NORMS
from normfuse.errors import InputError
from normfuse.files import write_text

__all__ = ["write_page"]

Run = Mapping[str, Any]
_SMOOTH = 20
_HEAD = """# Norms in training

The same small transformers, trained with each norm: the same seeds, batches, steps and learning rate,
converted from LayerNorm at the start by `normfuse.convert`. Written by `python -m bench.train_norms
--page`; do not edit.

Such small tasks say whether a norm trains, not which one is best: differences within the range of the seeds
mean nothing. *Fluctuation* is the mean of `abs(log(m_t / m_{t-1}))`, where `m` is the mean square of a
channel over a batch in front of a norm, over steps, channels and norms; *outlier* the largest `abs(x) /
rms` in front of any norm, in evaluation after training; *skipped* counts batches that UnifiedNorm's layers
left out.
"""


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
    written, parts = [], [_HEAD]
    for task, by_norm in sorted(runs.items()):
        ordered = {norm: by_norm[norm] for norm in NORMS if norm in by_norm}
        picture = page.with_name(f"{page.stem}-{task}.svg")
        lines = {norm: _curve(some) for norm, some in ordered.items()}
        shown = {norm: line for norm, line in lines.items() if line}
        if shown:
            written.append(write_text(picture, curves(shown, "step", "training loss")))
        parts.append(_section(task, ordered, picture.name))
    return [write_text(page, "\n".join(parts)), *written]


def _curve(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """Mean over seeds of the loss, smoothed over steps; runs that diverged are left out."""
    kept = [run["losses"] for run in runs if not run["diverged"]]
    length = min((len(losses) for losses in kept), default=0)
    return [
        (float(start), fmean(fmean(losses[start : start + _SMOOTH]) for losses in kept))
        for start in range(0, length - length % _SMOOTH, _SMOOTH)
    ]


def _section(task: str, by_norm: Mapping[str, Sequence[Run]], picture: str) -> str:
    first = next(iter(by_norm.values()))[0]
    made = f"PyTorch {first['torch']}, Python {first['python']}, one thread"
    size = f"{first['steps']} steps, {first['parameters']} parameters with {first['norm']}"
    head = f"## {task}\n\n{size}; {made}. Medians over seeds (smallest .. largest).\n"
    rows = ["| norm | seeds | held-out loss | accuracy | fluctuation | outlier | skipped | seconds |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    rows += [_row(norm, runs) for norm, runs in by_norm.items()]
    return "\n".join([head, *rows, "", f"![Training loss on {task}]({picture})", ""])


def _row(norm: str, runs: Sequence[Run]) -> str:
    final = [run["evaluations"][-1] for run in runs if not run["diverged"]]
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
