"""A report as a table for the terminal: equal outcomes in one row, refusals in full below.

What it groups and says here, the page of a report groups and says as well.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from normfuse.report import Refusal, Report, Site

__all__ = [
    "Group", "Reason", "common_name", "expectation", "grouped", "headline", "memory", "reasons", "render",
    "savings", "shown_bytes", "starred",
]  # fmt: skip


class Group(NamedTuple):
    """Equal outcomes of norms whose module paths differ in layer numbers only."""

    name: str
    sites: list[Site]


class Reason(NamedTuple):
    """Why norms stay: one reason, whatever the numbers of layers and graph nodes in its ``messages``."""

    code: str
    messages: list[str]
    remedy: str
    sites: list[Site]

    def __str__(self) -> str:
        more = len(self.messages) - 1
        like = f" (and {more} like it)" if more else ""
        remedy = f" Remedy: {self.remedy}." if self.remedy else ""
        return f"{self.code}: {self.messages[0]}{like}.{remedy}"


def render(report: Report) -> str:
    """Text of the report, 110 columns wide."""
    stream = io.StringIO()
    console = Console(file=stream, width=110, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(headline(report))
    if report.sites:
        console.print(_table(report.sites))
    paragraphs = [str(reason) for reason in reasons(report.sites) if reason.code not in _NOTHING_TO_DO]
    for reason in paragraphs[:_PARAGRAPHS]:
        console.print(reason, soft_wrap=False)
    if len(paragraphs) > _PARAGRAPHS:
        console.print(f"... and {len(paragraphs) - _PARAGRAPHS} more reasons")
    for note in report.notes:
        console.print(f"note: {note}")
    for place in report.breaks[:_PARAGRAPHS]:
        console.print(f"graph break {place}")
    if len(report.breaks) > _PARAGRAPHS:
        console.print(f"... and {len(report.breaks) - _PARAGRAPHS} more graph breaks")
    lines = (*_lowering(report.sites), *savings(report), *expectation(report), *memory(report))
    for line in lines:
        console.print(line)
    return stream.getvalue().rstrip("\n")


def _lowering(sites: Iterable[Site]) -> list[str]:
    """A line for each way in which something else than Inductor's own code runs norms."""
    ways = Counter(site.lowering for site in sites if site.is_lowered)
    return [f"{n} {'norm runs' if n == 1 else 'norms run'} as {way}" for way, n in ways.items()]


def expectation(report: Report) -> list[str]:
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


def savings(report: Report) -> list[str]:
    """A line that says what each call saves, and what it takes more."""
    saved = report.saved
    amounts = {
        f"{_short(abs(saved.operations))}operations": saved.operations,
        f"{shown_bytes(abs(saved.bytes))} of memory traffic": saved.bytes,
        f"{abs(saved.kernels)} {'kernel' if abs(saved.kernels) == 1 else 'kernels'}": saved.kernels,
    }
    fewer = [text for text, amount in amounts.items() if amount > 0]
    more = [text for text, amount in amounts.items() if amount < 0]
    parts = [f"{', '.join(fewer)} fewer"] * bool(fewer) + [f"{', '.join(more)} more"] * bool(more)
    return [f"at each call {' and '.join(parts)} (estimated from sizes)"] if parts else []


def _short(count: float) -> str:
    for size, name in ((1e9, "billion "), (1e6, "million ")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,.0f} "


def memory(report: Report) -> list[str]:
    """A line each that says what folding and freezing cost."""
    lines = []
    if report.copied_bytes:
        lines.append(f"folded weights hold {shown_bytes(report.copied_bytes)} of memory beside the originals")
    if report.frozen:
        graphs = "1 graph holds" if report.frozen == 1 else f"{report.frozen} graphs hold"
        size = shown_bytes(report.frozen_bytes)
        lines.append(f"{graphs} the weights as constants, {size} beside the originals, checked at every call")
    if report.products is not None:
        plain, frozen = report.products
        share = "as long as before" if frozen > 0.99 * plain else f"{frozen / plain:.0%} of their time"
        lines.append(f"products and convolutions then take {share} (measured here, one by one)")
    return lines


def shown_bytes(count: float) -> str:
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
    merged = sum(1 for site in report.sites if site.merged_into)
    extra += f", {merged} merged" if merged else ""
    graphs = f" in {report.graphs} graphs" if report.graphs > 1 else ""
    return f"normfuse: found {counts(report.found)}{graphs}; now {counts(report.after)}{extra}"


def _table(sites: list[Site]) -> Table:
    table = Table("norms", "", "found as", "becomes", "action", "reason", box=None, header_style="bold")
    for name, members in grouped(sites):
        site, count = members[0], len(members)
        code = "" if site.refusal is None else site.refusal.code
        table.add_row(name, f"x{count}" if count > 1 else "", site.kind, site.becomes, site.action, code)
    return table


def grouped(sites: list[Site]) -> list[Group]:
    """The sites, equal ones together, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        code = "" if site.refusal is None else site.refusal.code
        key = (starred(site.module), site.kind, site.becomes, site.action, code)
        groups.setdefault(key, []).append(site)
    return [Group(common_name([m.module for m in members]), members) for members in groups.values()]


def starred(path: str) -> str:
    """``h.*.ln_1`` for ``h.0.ln_1``."""
    return _NUMBER.sub("*", path)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


def common_name(paths: list[str]) -> str:
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


def reasons(sites: list[Site]) -> list[Reason]:
    """Why norms stay, each reason once; graph nodes that differ in their numbers only share it."""
    found: dict[tuple[str, str, str], list[Site]] = {}
    for site in sites:
        if site.refusal is not None:
            found.setdefault(_alike(site.refusal), []).append(site)
    return [
        Reason(code, list(dict.fromkeys(s.refusal.message for s in members if s.refusal)), remedy, members)
        for (code, _, remedy), members in found.items()
    ]


_PARAGRAPHS = 12
_NOTHING_TO_DO = ("already_rms_norm", "already_crms_norm")


def _alike(refusal: Refusal) -> tuple[str, str, str]:
    """A reason without the numbers of graph nodes and layers."""
    message = _NODE_NUMBER.sub("", starred(refusal.message))
    return refusal.code, message, _NODE_NUMBER.sub("", refusal.remedy)


_NODE_NUMBER = re.compile(r"_\d+\b")
