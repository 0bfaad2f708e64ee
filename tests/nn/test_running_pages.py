"""The code blocks of the pages about layers with running statistics run, and print what the pages say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

LAYERS = Path(__file__).resolve().parents[2] / "docs" / "layers"
PAGES = ("unified-norm", "power-norm", "batch-norms", "converting")


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, capsys):
    text = (LAYERS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```(?:\n\n```\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for code, printed in blocks:
        exec(compile(code, page, "exec"), names)
        shown = capsys.readouterr().out
        if printed:
            assert shown == printed


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (LAYERS / f"{page}.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (LAYERS / link).is_file(), link
