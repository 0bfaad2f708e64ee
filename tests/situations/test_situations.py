"""Every row of ``docs/situations.md``: the compiled model is the model, its norms fare as the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfuse.backends import session
from normfuse.report import Report
from tests.situations import operators, pieces, serving, shapes, training  # noqa: F401
from tests.situations.registry import SITUATIONS, Situation, cell, page

PAGE = Path(__file__).parents[2] / "docs" / "situations.md"


EACH = [pytest.param(s, id=s.run.__name__, marks=[pytest.mark.slow] if s.slow else []) for s in SITUATIONS]


@pytest.mark.parametrize("one", EACH)
def test_situation(one: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_latest", (None, {}))
    assert cell(one.run()) == one.expected


def test_the_page_says_what_is_tested() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.situations > docs/situations.md"


def test_a_cell_tells_what_fell_back() -> None:
    assert cell(Report(notes=["this graph is left to Inductor: because"])) == "falls back to Inductor"
