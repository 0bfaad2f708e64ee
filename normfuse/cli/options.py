"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DEBUG", "DTYPE", "JSON", "ONLY", "QUIET", "SKIP", "SOURCE", "TARGET", "as_list"]

SOURCE = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A .pt2 program, or module.path:factory for Python code; "
        "the factory returns a model and its example inputs.",
        show_default=False,
    ),
]
TARGET = Annotated[str, typer.Option(help="What the norms should become.", metavar="KIND")]
ONLY = Annotated[
    list[str] | None, typer.Option(metavar="RULE", help="Apply this rule and no other; repeatable.")
]
SKIP = Annotated[list[str] | None, typer.Option(metavar="RULE", help="Leave this rule out; repeatable.")]
DTYPE = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Convert a Python model and its inputs first, e.g. to bfloat16. "
        "A .pt2 program cannot be converted.",
    ),
]
JSON = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def as_list(rules: list[str] | None) -> list[str] | None:
    """Rules as given; None when there are none, which lets every rule run."""
    return list(rules) if rules else None
