"""``python -m normfuse.analysis``: print the operator table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from normfuse.analysis.summary import HEADINGS, lines, markdown

__all__ = ["main"]


def main(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of the documentation.")
    ] = False,
) -> None:
    """Print which operators pass, absorb or block which channel maps."""
    if as_markdown:
        typer.echo(markdown(), nl=False)
        return
    table = Table(*HEADINGS, header_style="bold", show_lines=True)
    for line in lines():
        table.add_row(", ".join(line.operators), line.centre, line.diagonal, line.shift, line.reads, line.how)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
