"""Every row of ``docs/situations.md``: the compiled model is the model, its norms fare as the table says."""

from __future__ import annotations

import pytest

from normfuse.backends import session
from tests.situations import training  # noqa: F401
from tests.situations.registry import SITUATIONS, Situation, cell


@pytest.mark.parametrize("one", SITUATIONS, ids=lambda s: s.run.__name__)
def test_situation(one: Situation) -> None:
    session._reports.clear()
    assert cell(one.run()) == one.expected
