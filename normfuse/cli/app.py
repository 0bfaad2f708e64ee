"""The ``normfuse`` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main"]

app = typer.Typer(
    help="Replace every normalization of a PyTorch model by the cheapest provably equal form.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Keeps ``demo`` a command of its own while it is the only one."""


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Time for training the vision transformer.")] = 30.0,
    quick: Annotated[bool, typer.Option(help="Small models and few rounds: seconds, not minutes.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to FILE.")
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Train a small transformer on handwritten digits, compile it, and compare with Inductor.

    Exit status 0 when no prediction differs and both models are verified, else 1.
    """
    try:
        from normfuse.cli.demo import run_demo

        agreed = run_demo(seconds=seconds, quick=quick, json_file=json_file)
    except Exception as error:
        if debug:
            raise
        typer.echo(f"normfuse: {_one_line(error)}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if agreed else 1)


def _one_line(error: Exception) -> str:
    from normfuse.errors import NormfuseError

    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, NormfuseError):
        return first
    kind = type(error).__name__
    return f"{kind}: {first} (--debug shows where)" if first else f"{kind} (--debug shows where)"


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
