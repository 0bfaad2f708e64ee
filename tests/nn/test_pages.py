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
    cells = {
        "width": lambda found: f"{found['ratio']:.3f}",
        "kernels": lambda found: str(found["kernels"]),
        "MiB": lambda found: str(round(found["peak_bytes"] / 2**20)),
    }
    for head, cell in cells.items():
        (start,) = (number for number, row in enumerate(rows) if row[0] == head)
        names = rows[start][1:]
        assert sorted(names) == sorted(name for name in stored["results"]["base"] if "again" not in name)
        for row, found in zip(rows[start + 2 : start + 5], stored["results"].values(), strict=True):
            assert row[1:] == [cell(found[name]) for name in names]
