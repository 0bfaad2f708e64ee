"""``normfuse demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from normfuse.cli.options import DEBUG, JSON
from normfuse.cli.outcome import one_line_errors

__all__ = ["demo"]


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for training the vision transformer.")] = 30.0,
    quick: Annotated[bool, typer.Option(help="Small models and few rounds: seconds, not minutes.")] = False,
    json_file: JSON = None,
    debug: DEBUG = False,
) -> None:
    """Train a small transformer on handwritten digits, compile it, and compare with Inductor.

    Exit status 0 when no prediction differs and both models are verified, else 1.
    """
    with one_line_errors(debug):
        from normfuse.files import check_writable

        if json_file is not None:
            check_writable(json_file)

        from normfuse.cli.demo import run_demo

        agreed = run_demo(seconds=seconds, quick=quick, json_file=json_file)
    raise typer.Exit(0 if agreed else 1)
