"""Figures on a scale, one under the other: a point, its interval, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normfuse.page.elements import Content, Html, element

__all__ = ["Point", "plain_table", "scale"]


@dataclass(frozen=True)
class Point:
    """One figure; ``shown`` is it in words, and ``verdict`` one of ``good``, ``even`` and ``bad``."""

    name: str
    value: float
    shown: str
    verdict: str
    low: float | None = None
    high: float | None = None


def scale(
    points: Sequence[Point], bounds: tuple[float, float], line: float, band: tuple[float, float] | None = None
) -> Html:
    """The points between ``bounds``, a line at one value and perhaps a band; what is beyond is cut off."""
    start, end = bounds

    def place(value: float) -> float:
        return round(100 * min(max((value - start) / (end - start), 0.0), 1.0), 2)

    def interval(name: str, low: float, high: float) -> Html:
        return element("i", class_=name, style=f"left:{place(low)}%;right:{round(100 - place(high), 2)}%")

    def row(point: Point) -> Html:
        low, high = (point.value if edge is None else edge for edge in (point.low, point.high))
        marks = [
            interval("band", *band) if band is not None else None,
            element("i", class_="one", style=f"left:{place(line)}%"),
            interval("bar", low, high),
            element("i", class_="dot", style=f"left:{place(point.value)}%"),
        ]
        return element(
            "li",
            element("span", point.name, class_="name"),
            element("span", marks, class_=f"track {point.verdict}", aria_hidden="true"),
            element("span", point.shown, class_=f"verdict {point.verdict}"),
        )

    return element("ul", [row(point) for point in points], class_="scale")


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of a few columns; the first cell of each row names it.

    It scrolls where it is too wide; on a phone the cells of a row stand one below the other.
    """
    head = element("tr", [element("th", name, scope="col") for name in headings])
    body = [element("tr", element("th", row[0], scope="row"), _cells(headings, row)) for row in rows]
    made = element("table", element("thead", head), element("tbody", body), class_="plain")
    return element("div", made, class_="wide", tabindex=0, role="region", aria_label=headings[0] or "figures")


def _cells(headings: Sequence[str], row: Sequence[str]) -> Content:
    names = zip(headings[1:], row[1:], strict=True)
    return [element("td", cell, data_label=heading) for heading, cell in names]
