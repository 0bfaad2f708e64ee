"""The page of a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normfuse.benchmark.settings import BASELINE
from normfuse.page.document import document, figures, section, versions
from normfuse.page.elements import Content, Html, element
from normfuse.page.scale import Point, plain_table, scale

if TYPE_CHECKING:
    from normfuse.benchmark.result import BatchResult, BenchResult

__all__ = ["bench_page"]

_OURS = "normfuse"
_KINDS = {"faster": "good", "tie": "even", "slower": "bad"}


def bench_page(result: BenchResult, caption: str, rows: Mapping[int, list[list[str]]]) -> str:
    """The page of ``result``; ``rows`` are the cells of the printed tables, by the place of the batch."""
    what = "training step" if result.settings.training else "inference"
    count = "1 process" if result.processes == 1 else f"{result.processes} processes"
    sections = [_batch(place, batch, rows[place]) for place, batch in enumerate(result.batches)]
    body = [
        figures(_figures(result)),
        sections,
        element("p", caption, class_="caption"),
        section("command", "Command", element("pre", element("code", result.command)))
        if result.command
        else None,
    ]
    facts = {"measured": f"{what}, {count}", **_machine(result.machine), **versions()}
    return document("bench", result.settings.source, _sentence(result), body, facts)


def _name(batch: BatchResult) -> str:
    return "" if batch.batch_size is None else f"batch {batch.batch_size}"


def _sentence(result: BenchResult) -> str:
    """What came out for normfuse, or else for all that took part."""
    said = []
    for batch in result.batches:
        for name, ratio in batch.ratios.items():
            if name == _OURS:
                at = f" at {_name(batch)}" if _name(batch) else ""
                said.append(f"{ratio.median:.3f}{at} ({batch.verdict(name)})")
    if not said:
        return "Times as ratios to Inductor's in the same round."
    return f"Time under normfuse over Inductor's: {', '.join(said)}."


def _figures(result: BenchResult) -> dict[str, str]:
    first = result.batches[0]
    shown = {
        f"{name} / {BASELINE}": f"{first.ratios[name].median:.3f}"
        for name in first.seconds
        if name in first.ratios
    }
    return {**shown, "noise floor": f"{first.floor:.1%}"}


def _batch(place: int, batch: BatchResult, rows: list[list[str]]) -> Html:
    points = [
        Point(name, ratio.median, f"{ratio.median:.3f} {batch.verdict(name)}", _KINDS[batch.verdict(name)],
              ratio.low, ratio.high)
        for name in batch.seconds
        if (ratio := batch.ratios.get(name)) is not None
    ]  # fmt: skip
    band = (1.0 - batch.floor, 1.0 + batch.floor)
    ends = [*band, *(end for point in points for end in (point.low or 0.0, point.high or 0.0))]
    margin = 0.06 * (max(ends) - min(ends))
    drawn = scale(points, (min(ends) - margin, max(ends) + margin), 1.0, band)
    explained: Content = element(
        "p", "Time over Inductor's, less is faster. The line is Inductor, the band the noise floor."
    )
    headings = ("", "time / Inductor's", "", "ms", "first call (s)", "peak (MiB)")
    return section(
        f"batch-{place + 1}",
        _name(batch).capitalize() or "Times",
        explained,
        drawn,
        plain_table(headings, rows),
    )


def _machine(machine: Mapping[str, Any]) -> dict[str, str]:
    packages = machine.get("packages", {})
    return {
        "processor": f"{machine.get('processor', '')}, {machine.get('cores', '?')} cores",
        "accelerator": str(machine.get("accelerator", "")),
        "system": str(machine.get("system", "")),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
