"""The drawing of a stream: a line down the page, what joins it, the norms on it, and the ways around them.

A layer that repeats is drawn once. The line and the ways beside it are drawn by styles, so rows may grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normfuse.page.elements import Content, Html, element, sentence
from normfuse.page.repeats import runs
from normfuse.page.sites import claim, mark
from normfuse.report_stream import Operation, Part
from normfuse.report_table import common_name, starred

if TYPE_CHECKING:
    from normfuse.report import Site

__all__ = ["drawing", "together"]

_LANES = 3
_READERS = 4


@dataclass(frozen=True)
class _Row:
    """What one line of the drawing says; ``parts`` are that of every layer that is drawn here."""

    role: str
    parts: tuple[Part, ...]

    @property
    def part(self) -> Part:
        return self.parts[0]


@dataclass(frozen=True)
class _Layer:
    """Rows that stand for ``count`` layers."""

    rows: list[_Row]
    count: int


def drawing(parts: Sequence[Part], sites: Sequence[Site], groups: Mapping[int, int]) -> Html:
    """A stream as a list; ``groups`` gives the row of the table for each site, by its place."""
    layers = _layers(parts, sites)
    rows = [row for layer in layers for row in layer.rows]
    lanes = _lanes(rows)
    width = 1 + max((lane for lane, _, _ in lanes.values()), default=-1)
    places = {id(row): place for place, row in enumerate(rows)}
    drawn = []
    for layer in layers:
        prefix = _prefix(layer.rows) if layer.count > 1 else ""
        lines = [_line(row, places[id(row)], len(rows), lanes, prefix, sites, groups) for row in layer.rows]
        drawn.append(lines if layer.count == 1 else _repeated(lines, prefix, layer.count))
    return element("ol", drawn, class_="stream", style=f"--lanes:{width}")


def _layers(parts: Sequence[Part], sites: Sequence[Site]) -> list[_Layer]:
    found = []
    for run in runs([_key(part, sites) for part in parts]):
        rows = []
        for place in range(run.start, run.start + run.length):
            alike = tuple(parts[place + run.length * turn] for turn in range(run.turns))
            rows.append(_Row(alike[0].role, alike))
            if alike[0].readers:
                rows.append(_Row("readers", alike))
        found.append(_Layer(rows, run.turns))
    return found


def _key(part: Part, sites: Sequence[Site]) -> tuple[object, ...]:
    outcome: tuple[object, ...] = ()
    if part.role == "norm":
        site = sites[part.site]
        outcome = (site.action, site.becomes, None if site.refusal is None else site.refusal.code)
    readers = tuple((reader.operator, starred(reader.module)) for reader in part.readers)
    return part.role, part.operation.operator, starred(part.operation.module), readers, outcome


def _lanes(rows: Sequence[_Row]) -> dict[int, tuple[int, int, int]]:
    """For each norm, by its site: its lane, the row it leaves the line at, and the row where the way ends.

    Where more ways run beside one another than there are lanes, the later ones are not drawn.
    """
    start = {row.part.site: place for place, row in enumerate(rows) if row.role == "norm"}
    end: dict[int, int] = {}
    for place, row in enumerate(rows):
        for site in (row.part.site,) if row.role == "readers" else row.part.after:
            if site in start:
                end[site] = place
    free_from = [-1] * _LANES
    lanes: dict[int, tuple[int, int, int]] = {}
    for site, place in start.items():
        lane = next((lane for lane, row in enumerate(free_from) if row < place), None)
        if lane is not None and site in end:
            lanes[site] = (lane, place, end[site])
            free_from[lane] = end[site]
    return lanes


def _line(
    row: _Row, place: int, count: int, lanes: Mapping[int, tuple[int, int, int]], prefix: str,
    sites: Sequence[Site], groups: Mapping[int, int],
) -> Html:  # fmt: skip
    ends = " first" * (place == 0) + " last" * (place == count - 1)
    sign = mark(sites[row.part.site].action) if row.role == "norm" else None
    rail = element("span", _rail(row, place, lanes), sign, class_=f"rail{ends}", aria_hidden="true")
    if row.role != "norm":
        return element("li", rail, element("div", _said(row, prefix), class_="line"), class_=row.role)
    group = groups[row.part.site]
    return element("li", rail, _norm(row, prefix, sites, group), class_="norm", data_group=group)


def _rail(row: _Row, place: int, lanes: Mapping[int, tuple[int, int, int]]) -> list[Html]:
    """The way of each norm where it passes this row; by their names the styles know what to draw."""
    drawn = []
    for site, (lane, begin, end) in lanes.items():
        if not begin <= place <= end:
            continue
        if place == begin:
            name = "opens"
        elif row.role == "readers" and row.part.site == site:
            name = "reads ends" if place == end else "reads"
        elif row.role == "writer" and site in row.part.after:
            name = "closes" if place == end else "joins"
        else:
            name = "passes"
        drawn.append(element("i", class_=f"way {name}", style=f"--lane:{lane}"))
    return drawn


def _said(row: _Row, prefix: str) -> Content:
    if row.role == "readers":
        readers = row.part.readers
        names = [
            _short(together([part.readers[i] for part in row.parts]), prefix) for i in range(len(readers))
        ]
        rest = f" and {len(names) - _READERS} more" if len(names) > _READERS else ""
        verb = "reads" if len(names) == 1 else "read"
        shown = [element("code", name) for name in names[:_READERS]]
        return [element("span", shown, class_="names"), element("span", f"{rest} {verb} it", class_="verb")]
    verb = "writes" if row.role == "writer" else "reads the stream as it is"
    return [*_named(row, prefix), element("span", verb, class_="verb")]


def _named(row: _Row, prefix: str) -> list[Html]:
    found = together([part.operation for part in row.parts])
    name = _short(found, prefix)
    kind = [element("span", found.operator, class_="kind")] if name != found.operator else []
    return [element("code", name), *kind]


def _norm(row: _Row, prefix: str, sites: Sequence[Site], group: int) -> Html:
    site = sites[row.part.site]
    becomes = site.becomes or "nothing"
    change = site.kind if becomes == site.kind else f"{site.kind} → {becomes}"
    code = "" if site.refusal is None or site.rewrites else f": {site.refusal.code}"
    name = element("code", _short(together([part.operation for part in row.parts]), prefix))
    outcome = element("span", f"{site.action}{code}", class_=f"outcome {site.action}")
    summary = element("summary", name, element("span", change, class_="kind"), outcome)
    return element(
        "details",
        summary,
        [claim(rewrite) for rewrite in site.rewrites],
        None if site.refusal is None else element("p", sentence(site.refusal.message)),
        element("p", element("code", site.source), class_="place") if site.source else None,
        element("p", element("a", "All that is known of it", href=f"#norms-{group + 1}")),
    )


def _repeated(lines: list[Html], prefix: str, count: int) -> Html:
    name = [element("code", prefix.rstrip(".")), " "] if prefix else None
    head = element("p", name, f"{count} layers alike, drawn once", class_="repeats")
    return element("li", head, element("ol", lines), class_="layer")


def together(operations: Sequence[Operation]) -> Operation:
    """The same operation of several layers under one name."""
    first = operations[0]
    return first._replace(module=common_name([one.module for one in operations]) if first.module else "")


def _prefix(rows: Sequence[_Row]) -> str:
    """The path that all modules of a layer begin with, up to a dot."""
    modules = [together([part.operation for part in row.parts]).module for row in rows]
    steps = [module.split(".") for module in modules if module]
    shared = []
    for step in zip(*(path[:-1] for path in steps), strict=False):
        if len(set(step)) > 1:
            break
        shared.append(step[0])
    return "".join(f"{step}." for step in shared)


def _short(operation: Operation, prefix: str) -> str:
    return operation.module.removeprefix(prefix) or operation.operator
