"""The ``normfuse`` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from normfuse.cli.commands.bench import bench
from normfuse.cli.commands.demo import demo
from normfuse.cli.commands.explain import explain
from normfuse.cli.commands.fold import fold
from normfuse.cli.commands.measure import measure
from normfuse.cli.commands.rewrite import rewrite
from normfuse.cli.commands.verify import verify
from normfuse.cli.outcome import OneLineErrors

__all__ = ["app", "main"]

app = typer.Typer(
    cls=OneLineErrors,
    help="Replace every normalization of a PyTorch model by the cheapest provably equal form.",
    epilog="Exit status: 0 done, 1 refused or not equal, 2 bad use. `normfuse COMMAND --help` says more.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from normfuse import __version__

        typer.echo(f"normfuse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself."""


for _command in (explain, rewrite, fold, verify, bench, measure, demo):
    app.command()(_command)


def main() -> None:
    """Entry point of the console script."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), _stop)
    app()


def _stop(number: int, frame: object) -> None:
    """End as after an interrupt from the keyboard, which leaves nothing unfinished behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
