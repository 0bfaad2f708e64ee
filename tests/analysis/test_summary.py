"""What the documentation says about the operator table, against the table."""

from __future__ import annotations

import operator
from collections import defaultdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from normfuse.analysis.channel_map import Trait
from normfuse.analysis.contraction import CONTRACTIONS
from normfuse.analysis.flow import Blocks, Carries, Scales, Shift
from normfuse.analysis.operator_table import ROWS, flow
from normfuse.analysis.ranges import RANGES
from normfuse.analysis.summary import _NOTES, markdown
from normfuse.ir.sizes import rank_of
from tests.analysis.table_cases import CASES
from tests.analysis.test_operator_table import traced

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operator-table.md"


def observed():
    """For each row, what its cases show: the most that any of them lets happen."""
    found = defaultdict(set)
    for call in CASES:
        node, _ = traced(call)
        for axis in range(rank_of(node)):
            found[ROWS[node.target]] |= outcomes(flow(node, axis))
    return found


def outcomes(found):
    if isinstance(found, Scales):
        return {"centre", "diagonal", "joins"}
    if isinstance(found, Blocks) or not isinstance(found, Carries):
        return set()
    linear = {"centre", "diagonal"} if found.needs is Trait.LINEAR else {"diagonal"}
    shift = {Shift.EVERYWHERE: {"passes"}, Shift.ONCE: {"absorbs"}, Shift.NOWHERE: set()}[found.shift]
    return linear | shift | ({"factor"} if found.factor is not None else set())


SEEN = observed()
#: Rows of other libraries' operators have their tests in ``tests/models``.
OWN = [row for row in _NOTES if not any(r is row for target, r in ROWS.items() if isinstance(target, str))]


@pytest.mark.parametrize("row", OWN, ids=lambda r: r.__name__)
def test_notes_say_what_the_rows_do(row) -> None:
    note, seen = _NOTES[row], SEEN[row]
    assert (note.centre != "blocks") == ("centre" in seen)
    assert (note.diagonal != "blocks") == ("diagonal" in seen)
    shift = {
        "passes": "passes" in seen,
        "absorbs": bool(seen & {"passes", "absorbs"}),
        "joins the map": "factor" in seen,
    }
    assert shift.get(note.shift, not seen & {"passes", "absorbs", "factor"})
    if note.diagonal == "joins the map":
        assert "joins" in seen


def test_every_row_has_a_note_and_every_reader_says_so() -> None:
    rows = {row for target, row in ROWS.items() if row.__name__ != "_zeros"}
    assert rows == set(_NOTES)
    reading = {ROWS[target] for target in CONTRACTIONS}
    assert reading == {row for row, note in _NOTES.items() if note.reads.startswith("absorbs")}
    assert {ROWS[t] for t in RANGES} <= set(_NOTES)


def test_the_page_is_what_the_command_prints() -> None:
    from normfuse.analysis.__main__ import main

    assert PAGE.read_text(encoding="utf-8") == markdown()
    import typer

    app = typer.Typer()
    app.command()(main)
    assert CliRunner().invoke(app, ["--markdown"]).output == markdown()
    plain = CliRunner().invoke(app, []).output
    assert "embedding" in plain
    assert operator.getitem in ROWS
