"""Elements of a page. Text is escaped where it is put into one, so no caller can forget it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["Content", "Html", "element", "joined", "sentence"]


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | int | None | Iterable["Content"]
"""What an element may hold: text, markup, nothing, or several of these."""

_VOID = frozenset({"meta", "input", "br"})
#: Characters that a page must not hold, or that no file can: controls and halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def element(tag: str, /, *content: Content, **attributes: str | int | bool | None) -> Html:
    """``<tag attribute="value">content</tag>``.

    An underscore in the name of an attribute stands for a hyphen, one at its end for nothing. An attribute
    that is True stands alone; one that is False or None is left out.
    """
    shown = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{shown}>")
    return Html(f"<{tag}{shown}>{joined(content)}</{tag}>")


def joined(content: Content) -> Html:
    """All of it, one after the other, as markup."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int)):
        return Html(_escaped(str(content)))
    return Html("".join(joined(part) for part in content))


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def _attribute(name: str, value: str | int | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_escaped(str(value))}"'


def _escaped(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text))
