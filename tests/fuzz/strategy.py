"""Random recipes, biased so that most networks hold something to convert and some of everything else."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz import (
    pieces_around,
    pieces_broadcast,
    pieces_move,
    pieces_read,
    pieces_scale,
    pieces_stored,
    pieces_write,
)
from tests.fuzz.network import STEPS
from tests.fuzz.recipe import Recipe, Step

__all__ = ["FRIENDLY", "HOSTILE", "recipes"]

BLOCKED = pieces_write.BLOCKED | pieces_stored.BLOCKED | pieces_broadcast.BLOCKED | pieces_around.BLOCKED
FRIENDLY = {
    "write": sorted(set(STEPS["write"]) - BLOCKED),
    "stored": sorted(set(STEPS["stored"]) - BLOCKED),
    "move": sorted(set(STEPS["move"]) - pieces_move.BLOCKED),
    "norm": sorted(set(STEPS["norm"]) - pieces_read.NEAR_MISSES),
    "scaled": sorted(pieces_scale.SCALED),
    "tap": sorted(set(STEPS["tap"]) - pieces_read.RAW_TAPS),
}
HOSTILE = {
    "write": sorted(set(STEPS["write"]) & BLOCKED),
    "stored": sorted(set(STEPS["stored"]) & BLOCKED),
    "move": sorted(pieces_move.BLOCKED),
    "norm": sorted(pieces_read.NEAR_MISSES),
    "scaled": [],
    "tap": sorted(pieces_read.RAW_TAPS),
}
_KINDS = ("norm", "write", "write", "norm", "write", "move", "norm", "move", "tap", "stored", "scaled")
_JOINS = ("add", "add", "add", *pieces_write.JOINS)


def _steps(kinds: tuple[str, ...], variants: dict[str, list[str]]) -> st.SearchStrategy[Step]:
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.builds(
            Step,
            kind=st.just(kind),
            variant=st.sampled_from(variants[kind]),
            source=st.integers(0, 3),
            target=st.sampled_from((0, 0, 0, 1, 2)),
            join=st.sampled_from(_JOINS),
            tie=st.sampled_from((False, False, False, True)),
        )
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    friendly = _steps(_KINDS, FRIENDLY)
    hostile = _steps(("write", "stored", "move", "norm", "tap"), HOSTILE)
    steps = draw(st.lists(friendly, min_size=3, max_size=10))
    for step in draw(st.lists(hostile, max_size=draw(st.sampled_from((0, 0, 1, 3))))):
        steps.insert(draw(st.integers(0, len(steps))), step)
    steps.append(draw(_steps(("norm",), FRIENDLY)))
    dynamic = draw(st.sampled_from((False,) * 19 + (True,)))
    return Recipe(
        steps=tuple(steps),
        width=draw(st.sampled_from((4, 3, 5, 6, 8))),
        batch=7 if dynamic else draw(st.sampled_from((2, 4, 1, 3))),
        tokens=9 if dynamic else draw(st.sampled_from((3, 4, 1, 2, 5))),
        seed=draw(st.integers(0, 2**16)),
        alias=draw(st.sampled_from((False, False, True))),
        dynamic=dynamic,
        raw=draw(st.sampled_from((False,) * 9 + (True,))),
    )
