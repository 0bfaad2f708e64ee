"""What a long command is doing, on standard error, and only where somebody is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Say", "steps"]

Say = Callable[[str], None]


@contextmanager
def steps(quiet: bool, total: int | None = None) -> Iterator[Say]:
    """A function that says what comes next: beside a bar where the number of steps is known.

    Silent with ``quiet`` or when the output is no terminal.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
    elif total is None:
        with console.status("") as status:
            yield lambda text: status.update(f"{text} ...")
    else:
        with _bar(console) as progress:
            yield _advancing(progress, total)


def _bar(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)


def _advancing(progress: Progress, total: int) -> Say:
    """The bar shows steps that are done, so the first one that is announced does not move it."""
    task = progress.add_task("", total=total)
    begun = iter(range(total + 1))

    def say(text: str) -> None:
        progress.update(task, description=text, completed=next(begun, total))

    return say
