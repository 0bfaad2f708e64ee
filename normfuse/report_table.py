"""A report as a table for the terminal: equal outcomes in one row, refusals in full below."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from normfuse.report import Refusal, Report, Site

__all__ = ["headline", "render"]


def render(report: Report) -> str:
    """Text of the report, 110 columns wide."""
    stream = io.StringIO()
    console = Console(file=stream, width=110, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(headline(report))
    if report.sites:
        console.print(_table(report.sites))
    for reason in _reasons(report.sites):
        console.print(reason, soft_wrap=False)
    for note in report.notes:
        console.print(f"note: {note}")
    for place in report.breaks[:_PARAGRAPHS]:
        console.print(f"graph break {place}")
    if len(report.breaks) > _PARAGRAPHS:
        console.print(f"... and {len(report.breaks) - _PARAGRAPHS} more graph breaks")
    for line in (*_lowering(report.sites), *_expectation(report), *_memory(report)):
        console.print(line)
    return stream.getvalue().rstrip("\n")


def _lowering(sites: Iterable[Site]) -> list[str]:
    """A line for each way in which something else than Inductor's own code runs norms."""
    ways = Counter(site.lowering for site in sites if site.is_lowered)
    return [f"{n} {'norm runs' if n == 1 else 'norms run'} as {way}" for way, n in ways.items()]


def _expectation(report: Report) -> list[str]:
    """One line that says what all this is worth, as far as sizes tell."""
    share = report.changed_share
    if share is None or not report.graphs:
        return []
    if share < _NOTHING:
        inside = "" if not share else f": about {share:.1%} of the time was in what changed"
        from_norms = " from norms" if report.frozen else ""
        return [f"nothing to gain in speed{from_norms} here{inside} (estimated from sizes)"]
    figure = f"{max(share, 0.01):.0%}"
    beside = " from that" if report.frozen else ""
    return [
        f"about {figure} of the time was in what changed (estimated from sizes): expect to gain less{beside}"
    ]


_NOTHING = 0.005


def _memory(report: Report) -> list[str]:
    """A line each that says what folding and freezing cost."""
    lines = []
    if report.copied_bytes:
        lines.append(f"folded weights hold {_bytes(report.copied_bytes)} of memory beside the originals")
    if report.frozen:
        graphs = "1 graph holds" if report.frozen == 1 else f"{report.frozen} graphs hold"
        size = _bytes(report.frozen_bytes)
        lines.append(f"{graphs} the weights as constants, {size} beside the originals, checked at every call")
    if report.products is not None:
        plain, frozen = report.products
        share = "as long as before" if frozen > 0.99 * plain else f"{frozen / plain:.0%} of their time"
        lines.append(f"products and convolutions then take {share} (measured here, one by one)")
    return lines


def _bytes(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"


def headline(report: Report) -> str:
    def counts(of: dict[str, int]) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in sorted(of.items())) or "no norms"

    weights = "weight" if report.folded == 1 else "weights"
    centrings = "centring" if report.centrings == 1 else "centrings"
    extra = f"; {report.folded} {weights} folded, {report.centrings} explicit {centrings}"
    graphs = f" in {report.graphs} graphs" if report.graphs > 1 else ""
    return f"normfuse: found {counts(report.found)}{graphs}; now {counts(report.after)}{extra}"


def _table(sites: list[Site]) -> Table:
    table = Table("norms", "", "found as", "becomes", "action", "reason", box=None, header_style="bold")
    for count, name, site in _grouped(sites):
        code = "" if site.refusal is None else site.refusal.code
        table.add_row(name, f"x{count}" if count > 1 else "", site.kind, site.becomes, site.action, code)
    return table


def _grouped(sites: list[Site]) -> Iterable[tuple[int, str, Site]]:
    """Equal outcomes of norms whose module paths differ in layer numbers only."""
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        code = "" if site.refusal is None else site.refusal.code
        key = (_NUMBER.sub("*", site.module), site.kind, site.becomes, site.action, code)
        groups.setdefault(key, []).append(site)
    for members in groups.values():
        yield len(members), _common_name([m.module for m in members]), members[0]


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


def _common_name(paths: list[str]) -> str:
    """``h.{0-11}.ln_1`` for ``h.0.ln_1`` to ``h.11.ln_1``."""
    columns = zip(*(_NUMBER.findall(path) for path in paths), strict=True)
    numbers = iter([_ranges(sorted({int(n) for n in column})) for column in columns])
    return _NUMBER.sub(lambda _: next(numbers), paths[0]) or "(root)"


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return "{" + ",".join(shown) + "}"


def _reasons(sites: list[Site]) -> list[str]:
    """One paragraph per reason; graph nodes that differ in their numbers only share it."""
    groups: dict[tuple[str, str, str], dict[str, None]] = {}
    for site in sites:
        if site.refusal is not None and site.refusal.code not in _NOTHING_TO_DO:
            groups.setdefault(_alike(site.refusal), {})[site.refusal.message] = None
    shown = [
        f"{code}: {next(iter(messages))}{_more(len(messages) - 1)}.{f' Remedy: {remedy}.' if remedy else ''}"
        for (code, _, remedy), messages in groups.items()
    ]
    hidden = len(shown) - _PARAGRAPHS
    return shown[:_PARAGRAPHS] + ([f"... and {hidden} more reasons"] if hidden > 0 else [])


_PARAGRAPHS = 12
_NOTHING_TO_DO = ("already_rms_norm", "already_crms_norm")


def _alike(refusal: Refusal) -> tuple[str, str, str]:
    """A reason without the numbers of graph nodes and layers."""
    message = _NODE_NUMBER.sub("", _NUMBER.sub("*", refusal.message))
    return refusal.code, message, _NODE_NUMBER.sub("", refusal.remedy)


_NODE_NUMBER = re.compile(r"_\d+\b")


def _more(count: int) -> str:
    if count <= 0:
        return ""
    return f" (and {count} like it)"
