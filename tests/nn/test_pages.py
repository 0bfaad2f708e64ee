"""The code on the pages of the layers runs."""

from __future__ import annotations

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
