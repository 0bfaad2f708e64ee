"""The frame of every page: styles and script inside, nothing from outside, which its policy forbids."""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files

from normfuse.page.elements import Content, Html, element, joined

__all__ = ["document", "figures", "section", "versions"]


def document(kind: str, subject: str, lead: Content, body: Content, facts: Mapping[str, str]) -> str:
    """A page as text.

    ``kind`` and ``subject`` name it, ``lead`` says the outcome in a sentence, ``facts`` stand at its end.
    """
    script = _asset("script.js")
    title = f"{subject} · normfuse {kind}" if subject else f"normfuse {kind}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_asset("style.css"))),
    )
    header = element(
        "header",
        element("p", f"normfuse {kind}", class_="eyebrow"),
        element("h1", subject or "Model"),
        element("p", lead, class_="lead"),
    )
    footer = element("footer", element("dl", [_fact(*fact) for fact in facts.items() if fact[1]]))
    page = element("body", header, element("main", body), footer, element("script", Html(script)))
    return f"<!doctype html>\n{element('html', head, page, lang='en')}\n"


def section(name: str, title: str, *content: Content) -> Html:
    """A part of the page under a heading; ``name`` is its anchor. Without content there is none."""
    inside = joined(content)
    if not inside:
        return inside
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, inside, id=name, aria_labelledby=f"{name}-title")


def figures(pairs: Mapping[str, str]) -> Html:
    """The figures that count, large, each above its name; empty ones are left out."""
    shown = [
        element("div", element("dt", name), element("dd", figure)) for name, figure in pairs.items() if figure
    ]
    return element("dl", shown, class_="figures") if shown else Html("")


def versions() -> dict[str, str]:
    """What the page was made with, and when."""
    return {
        "normfuse": str(import_module("normfuse").__version__),
        "PyTorch": version("torch"),
        "Python": platform.python_version(),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _fact(name: str, value: str) -> Html:
    return element("div", element("dt", name), element("dd", value))


def _asset(name: str) -> str:
    return files("normfuse.page").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is loaded, and no other script than this one runs, whatever a model is called."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
