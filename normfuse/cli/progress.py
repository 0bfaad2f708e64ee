"""What a long command is doing, on standard error, and only where somebody is watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["steps"]


@contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that says what comes next; silent with ``quiet`` or when the output is no terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(f"{text} ...")
