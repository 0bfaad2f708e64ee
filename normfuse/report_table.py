"""A report as a table for the terminal: equal outcomes in one row, refusals in full below."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from normfuse.report import Report, Site

__all__ = ["render"]


def render(report: Report) -> str:
    """Text of the report, 110 columns wide."""
    stream = io.StringIO()
    console = Console(file=stream, width=110, color_system=None, highlight=False)
    console.print(_headline(report))
    if report.sites:
        console.print(_table(report.sites))
    for reason in _reasons(report.sites):
        console.print(reason, soft_wrap=False)
    for note in report.notes:
        console.print(f"note: {note}")
    return stream.getvalue().rstrip("\n")


def _headline(report: Report) -> str:
    def counts(of: dict[str, int]) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in sorted(of.items())) or "no norms"

    extra = f"; {report.folded} weights folded, {report.centrings} explicit centrings"
    return f"normfuse: found {counts(report.found)}; now {counts(report.after)}{extra}"


def _table(sites: list[Site]) -> Table:
    table = Table("norms", "", "found as", "becomes", "action", "reason", box=None, header_style="bold")
    for count, name, site in _grouped(sites):
        code = "" if site.refusal is None else site.refusal.code
        table.add_row(name, f"x{count}" if count > 1 else "", site.kind, site.becomes, site.action, code)
    return table


def _grouped(sites: list[Site]) -> Iterable[tuple[int, str, Site]]:
    """Runs of equal outcomes whose module paths differ in layer numbers only."""

    def key(site: Site) -> tuple[str, ...]:
        code = "" if site.refusal is None else site.refusal.code
        return _pattern(site.module), site.kind, site.becomes, site.action, code

    ordered = sorted(
        range(len(sites)), key=lambda i: min(j for j, s in enumerate(sites) if key(s) == key(sites[i]))
    )
    for _, run in groupby((sites[i] for i in ordered), key=key):
        members = list(run)
        yield len(members), _pattern(members[0].module) if len(members) > 1 else members[0].module, members[0]


def _pattern(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)|\[\d+\]", "*", path) or "(root)"


def _reasons(sites: list[Site]) -> list[str]:
    lines: dict[str, None] = {}
    for site in sites:
        if site.refusal is not None and site.refusal.code != "already_rms_norm":
            remedy = f" Remedy: {site.refusal.remedy}" if site.refusal.remedy else ""
            lines[f"{site.refusal.code}: {site.refusal.message}{remedy}"] = None
    shown = list(lines)[:12]
    return shown + ([f"... and {len(lines) - 12} more reasons"] if len(lines) > 12 else [])
