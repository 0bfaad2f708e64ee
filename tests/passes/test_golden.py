"""What each stage does to a small network, as text: the same as when somebody last read it."""

from __future__ import annotations

import pytest

from normfuse.passes.catalogue import RULES
from tests.passes.golden.cases import FOLDER, FOUND, Golden


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)
def test_the_graph_before_and_after_is_the_one_that_was_read(case: Golden) -> None:
    """If the change is meant: ``python -m tests.passes.golden``, and read what it wrote."""
    assert case.text() == case.path.read_text(encoding="utf-8")


def test_every_rule_and_no_other_file_is_shown() -> None:
    assert {rule.name for rule in RULES} <= {case.stage for case in FOUND}
    assert sorted(FOLDER.glob("*.txt")) == sorted(case.path for case in FOUND)
