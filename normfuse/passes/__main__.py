"""``python -m normfuse.passes``: print what every rule claims, and who said so first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from normfuse.passes.catalogue import RULES
from normfuse.passes.rule import Rule

__all__ = ["main", "markdown"]

HEADINGS = ("rule", "equation", "result", "source")


def main(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
) -> None:
    """Print the rules in the order in which they run."""
    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    table = Table(*HEADINGS, header_style="bold", show_lines=True)
    for rule in RULES:
        table.add_row(rule.name, "\n".join(_equations(rule)), rule.numerics.value, rule.source)
    Console().print(table)


def markdown() -> str:
    """The rules as a table."""
    lines = [_row(HEADINGS), _row("---" for _ in HEADINGS)]
    for rule in RULES:
        equations = "<br>".join(f"`{equation}`" for equation in _equations(rule))
        lines.append(_row((f"`{rule.name}`", equations, rule.numerics.value, rule.source)))
    return "\n".join(lines) + "\n"


def _equations(rule: Rule) -> list[str]:
    """What a rule claims, and what that comes to in each of its forms."""
    return [rule.equation, *(f"{form}: {equation}" for form, equation in rule.forms.items())]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    typer.run(main)
