"""Subscripts of ``einsum`` with one letter for every axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["subscripts"]

#: Stand for the axes of an ellipsis; equations have Latin letters only.
_HIDDEN = "αβγδεζηθικλμνξοπρστυφχψω"


def subscripts(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of the operands, which have these ranks, and of the output.

    An ellipsis stands for the axes that its operand has besides its letters, counted from the right. An
    output that is not written down has the axes of ellipses and then the letters that occur once, sorted.
    """
    written, arrow, output = equation.replace(" ", "").partition("->")
    terms = written.split(",")
    hidden = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    if not arrow:
        counts = Counter(letter for letter in written if letter.isalpha())
        output = "..." + "".join(sorted(letter for letter, count in counts.items() if count == 1))
    return [_filled(t, h) for t, h in zip(terms, hidden, strict=True)], _filled(
        output, max(hidden, default=0)
    )


def _filled(term: str, hidden: int) -> str:
    return term.replace("...", _HIDDEN[len(_HIDDEN) - hidden :] if hidden else "")
