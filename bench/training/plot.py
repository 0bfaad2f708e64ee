"""Curves as a small SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["curves"]

_COLOURS = ("#4c566a", "#bf616a", "#d08770", "#5e81ac", "#3b8f5a", "#8f5a8f")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 320, 56, 16, 150, 40


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str) -> str:
    """One line for each name, with axes from the smallest to the largest value."""
    points = [point for line in series.values() for point in line]
    (low_x, high_x), (low_y, high_y) = (_range([p[axis] for p in points]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> str:
        across = (point[0] - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)
        up = (point[1] - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{_LEFT + across:.1f},{_HEIGHT - _BOTTOM - up:.1f}"

    lines = [_axes(low_x, high_x, low_y, high_y, x_name, y_name)]
    for number, (name, line) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = " ".join(place(point) for point in line)
        lines.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        lines.append(_text(_WIDTH - _RIGHT + 12, _TOP + 14 + 18 * number, name, colour))
    style = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return "\n".join([f'<svg {style} font-size="12">', background, *lines, "</svg>"]) + "\n"


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(low_x: float, high_x: float, low_y: float, high_y: float, x_name: str, y_name: str) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    path = f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="#888"/>'
    middle = (_LEFT + right) // 2
    return "\n".join([
        path,
        _text(_LEFT, bottom + 16, f"{low_x:g}"), _text(right, bottom + 16, f"{high_x:g}", anchor="end"),
        _text(middle, bottom + 32, x_name, anchor="middle"),
        _text(_LEFT - 6, bottom, f"{low_y:.3g}", anchor="end"),
        _text(_LEFT - 6, _TOP + 10, f"{high_y:.3g}", anchor="end"),
        _text(_LEFT + 6, _TOP + 10, y_name),
    ])  # fmt: skip


def _text(x: float, y: float, text: str, colour: str = "#333", anchor: str = "start") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{escaped}</text>'
