"""What people read: links and anchors lead somewhere, every page is on the site, made ones are current."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest
import yaml

from bench import models_page
from tests.passes import rules_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FILES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
]

FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n+)+")
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} (.+?)\s*#*$", re.MULTILINE)
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """The text without its code."""
    return CODE.sub("", INDENTED.sub("", FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    """The anchors of a page, as Python-Markdown and the hosts of repositories make them."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", html.unescape(heading))
        slug = re.sub(r"[^\w\s-]", "", shown).strip().lower().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if not n else f"{slug}-{n}" for slug, last in found.items() for n in range(last + 1)}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere; those to other hosts are not followed."""
    faults = []
    for match in LINK.finditer(prose(text)):
        target = match[1] or match[2]
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        outside = not file.exists() or not file.is_relative_to(ROOT)
        if outside or (
            anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text(encoding="utf-8")))
        ):
            faults.append(target)
        elif page.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
            faults.append(f"{target} leads out of the site")
    return faults


@pytest.mark.parametrize("page", FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_pictures_have_a_description(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert broken(page, text) == []
    assert all(description.strip() for description, _ in PICTURE.findall(prose(text)))


def test_the_check_of_links_can_fail() -> None:
    page = DOCS / "index.md"
    wrong = (
        "[a](nowhere.md)",
        "[a](report.md#nowhere)",
        "[a](#nowhere)",
        "![a](no.png)",
        "[a](../README.md)",
    )
    assert [len(broken(page, text)) for text in wrong] == [1] * len(wrong)
    right = "# A b\n[a](report.md) [b](rules.md#reasons) [c](https://a.b/c) `[d](no)`\n\n    [e](no)\n"
    assert broken(page, right) == []
    assert anchors("## A `b`, c\n## D\n## D\n```\n# no\n```") == {"a-b-c", "d", "d-1"}


def placed(entries: list[object]) -> list[str]:
    """The pages of a navigation, which has sections in sections."""
    values = [
        value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])
    ]
    return [p for value in values for p in (placed(value) if isinstance(value, list) else [str(value)])]


def test_the_site_has_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert site["strict"] is True
    assert sorted(placed(site["nav"])) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def test_pictures_are_small() -> None:
    large = [p.name for p in DOCS.rglob("*") if p.suffix in (".png", ".svg") and p.stat().st_size > 150_000]
    assert large == []


def test_the_page_of_the_rules_is_current() -> None:
    current = rules_page.PAGE.read_text(encoding="utf-8") == rules_page.page()
    assert current, "run python -m tests.passes.rules_page"


def test_the_page_of_the_models_is_current() -> None:
    with models_page.SWEEP.open(encoding="utf-8", newline="") as file:
        current = models_page.PAGE.read_text(encoding="utf-8") == models_page.render(csv.DictReader(file))
    assert current, "run python -m bench.models_page"
