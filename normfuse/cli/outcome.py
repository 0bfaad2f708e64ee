"""How a command ends: 0 done, 1 refused or not equal, 2 bad use; an error is one line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["OneLineErrors", "one_line_errors"]

BAD_USE = 2


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turn any error into one line and an exit status; with ``debug`` it is raised as it is."""
    with warnings.catch_warnings():
        if not debug:
            _silence_torch()
            warnings.filterwarnings("ignore", module=r"(torch|transformers|copyreg)(\.|$)")
        try:
            yield
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            _drop_what_is_unread()
        except SystemExit as error:
            typer.echo(f"normfuse: the model's own code ended the program with {error.code!r}", err=True)
            raise typer.Exit(BAD_USE) from None
        except Exception as error:
            if debug:
                raise
            typer.echo(f"normfuse: {_one_line(error)}", err=True)
            raise typer.Exit(_status(error)) from None


def _drop_what_is_unread() -> None:
    """Whoever read the output, ``head`` for example, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _silence_torch() -> None:
    """PyTorch logs an error with its traceback before it raises it."""
    import torch  # noqa: F401  # which gives its loggers their handlers

    loggers = [logging.getLogger(n) for n in logging.root.manager.loggerDict if n.split(".")[0] == "torch"]
    for handler in {h for logger in loggers for h in logger.handlers}:
        handler.setLevel(logging.CRITICAL)


def _status(error: Exception) -> int:
    from normfuse.errors import InputError, OptionError

    return BAD_USE if isinstance(error, (InputError, OptionError)) else 1


def _one_line(error: Exception) -> str:
    from normfuse.errors import NormfuseError

    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, NormfuseError):
        return first
    kind = type(error).__name__
    return f"{kind}: {first} (--debug shows where)" if first else f"{kind} (--debug shows where)"


class OneLineErrors(TyperGroup):
    """Commands whose usage errors are one line too."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; usage errors go to standard error and end with status 2."""
        alone = options.pop("standalone_mode", True)
        options["standalone_mode"] = False
        if not alone:
            return super().main(*args, **options)
        try:
            status = super().main(*args, **options)
        except typer.Abort:
            typer.echo("normfuse: aborted", err=True)
            sys.exit(1)
        except Exception as error:
            sys.exit(_usage_error(error))
        sys.exit(status if isinstance(status, int) else 0)


def _usage_error(error: Exception) -> int:
    """Print what was wrong with the words of a command; anything else is raised again."""
    message = getattr(error, "format_message", None)
    if message is None:
        raise error
    text = str(message()).strip().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if text:  # nothing to say when no command was given, since the help is on the screen then
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        typer.echo(f"normfuse: {text.rstrip('.')}{hint}", err=True)
    return int(getattr(error, "exit_code", BAD_USE))
