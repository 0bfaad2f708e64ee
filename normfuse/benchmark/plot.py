"""A picture of the ratios: one point per contender and batch size, its interval, and the noise floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfuse.benchmark.settings import BASELINE
from normfuse.errors import InputError, NormfuseError
from normfuse.files import check_writable, replacing

if TYPE_CHECKING:
    from normfuse.benchmark.result import BatchResult, BenchResult

__all__ = ["check_plot", "plot"]

_SUFFIXES = (".png", ".svg")


def check_plot(path: str | Path) -> None:
    """Make sure, before anything is measured, that a picture can be drawn there.

    Raises:
        InputError: for another suffix than ``.png`` or ``.svg``, or a folder that does not exist.
        NormfuseError: when matplotlib is not installed.
    """
    target = check_writable(path)
    if target.suffix not in _SUFFIXES:
        raise InputError(f"a plot is written as a {' or '.join(_SUFFIXES)} file, not to {target.name}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise NormfuseError("a plot needs matplotlib: pip install 'normfuse[bench]'") from None


def plot(result: BenchResult, path: str | Path) -> Path:
    """Draw ``result`` to a ``.png`` or ``.svg`` file."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 1.6 * len(result.batches)), layout="constrained")
    axes = figure.subplots(len(result.batches), 1, squeeze=False, sharex=True)
    for ax, batch in zip(axes[:, 0], result.batches, strict=True):
        _draw(ax, batch)
    axes[-1, 0].set_xlabel("time / Inductor's (less is faster); grey: Inductor against itself")
    figure.suptitle(result.settings.source or "model")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=unfinished.suffix[1:], dpi=150)
    return Path(path)


def _draw(ax: Any, batch: BatchResult) -> None:
    names = [name for name in batch.seconds if name != BASELINE][::-1]
    found = [batch.ratios[name] for name in names]
    errors = [[max(r.median - r.low, 0) for r in found], [max(r.high - r.median, 0) for r in found]]
    ax.axvspan(1 - batch.floor, 1 + batch.floor, color="0.85", zorder=0)
    ax.axvline(1.0, color="0.3", linewidth=1)
    ax.errorbar([r.median for r in found], names, xerr=errors, fmt="o", color="#28608f", capsize=4)
    ax.margins(y=0.25)
    ax.set_title(
        "" if batch.batch_size is None else f"batch {batch.batch_size}", loc="left", fontsize="medium"
    )
