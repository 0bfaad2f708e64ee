"""``changed`` is ``dataclasses.replace``, only faster."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from normfuse.ir.changed import changed


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)


def test_it_is_replace() -> None:
    point = Point(1, 5, ["a"])
    made = changed(point, x=3)
    assert made == replace(point, x=3)
    assert type(made) is Point
    assert point == Point(1, 5, ["a"])


def test_the_copy_stands_apart() -> None:
    point = Point(1)
    made = changed(point)
    assert made == point
    object.__setattr__(made, "x", 9)
    assert point.x == 1
