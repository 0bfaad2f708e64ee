"""What every page has to be: balanced, whole without a network, and without a script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

__all__ = ["Page", "checked"]

_VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """The elements of a page by their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.faults: list[str] = []
        self.feed(source)
        self.close()
        self.faults += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len({name for name, _ in attrs}) != len(attrs):
            self.faults.append(f"an attribute of {tag} stands twice")
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"out of place: </{tag}>")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [held[name] or "" for _, held in self.elements if name in held]


def checked(source: str) -> Page:
    """The page, after everything that holds for all of them was asserted."""
    page = Page(source)
    assert page.faults == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == tags.count("style") == tags.count("h1") == tags.count("main") == 1
    assert not {"img", "link", "iframe", "object", "base", "svg", "embed"} & set(tags)
    assert not [name for _, held in page.elements for name in held if name.startswith("on")]
    assert not {"src", "srcset", "action", "formaction", "background", "poster"} & {
        name for _, held in page.elements for name in held
    }
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(page.attributes("aria-controls") + page.attributes("aria-labelledby")) <= set(ids)
    assert all(href.startswith("#") and href[1:] in ids for href in page.attributes("href"))
    outside = re.compile(r"url\(|@import|https?:|//[a-z]", re.IGNORECASE)
    assert not [style for style in page.attributes("style") if outside.search(style)]
    inside = re.findall(r"<style>(.*?)</style>|<script>(.*?)</script>", source, re.DOTALL)
    assert not re.search(r"url\(|@import|https?:", "".join(map("".join, inside)))
    _check_policy(page, source)
    return page


def _check_policy(page: Page, source: str) -> None:
    """Nothing is loaded, and the only script that may run is the one that is there."""
    (policy,) = [held["content"] for tag, held in page.elements if held.get("http-equiv")]
    script = source[source.index("<script>") + 8 : source.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
