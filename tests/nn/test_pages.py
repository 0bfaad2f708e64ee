"""The code on the pages of the layers runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "layers"
#: The comparison is written by a command, and has figures alone.
PAGES = sorted(set(FOLDER.glob("*.md")) - {FOLDER / "comparison.md"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_figures_of_unified_norm_are_those_that_are_stored():
    stored = json.loads((FOLDER.parents[1] / "bench/results/unified_norm.json").read_text(encoding="utf-8"))
    rows = [line.strip("| ").split(" | ") for line in (FOLDER / "unified-norm.md").read_text().splitlines()]
    (start,) = (number for number, row in enumerate(rows) if row[0] == "width")
    names = rows[start][1:-1]
    assert sorted(names) == sorted(name for name in stored["results"]["base"] if "again" not in name)
    for row, found in zip(rows[start + 2 :], stored["results"].values(), strict=False):
        assert row[1:-1] == [f"{found[name]['ratio']:.3f}" for name in names]
        assert rows[start + 5][1:5] == [str(found[name]["kernels"]) for name in names]
