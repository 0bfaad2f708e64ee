"""What a long command is doing, on standard error: live in a terminal, line by line anywhere else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Lines", "Say", "steps"]

Say = Callable[[str], None]

_PAUSE = 2.0
"""Seconds between two lines that differ in their numbers only."""


@contextmanager
def steps(quiet: bool, total: int | None = None) -> Iterator[Say]:
    """A function that says what comes next: beside a bar where the number of steps is known.

    Silent with ``quiet``. Where the output is no terminal, plain lines.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if quiet:
        yield lambda text: None
    elif not console.is_terminal:
        yield Lines(lambda text: console.print(text, soft_wrap=True), total)
    elif total is None:
        with console.status("") as status:
            yield lambda text: status.update(f"{text} ...")
    else:
        with _bar(console) as progress:
            yield _advancing(progress, total)


class Lines:
    """One line a step, for logs.

    The first waits for the second, so that an error right at the start stands alone. Of steps that are
    numbers of one kind, such as ``norm 7 of 25``, only some are shown.
    """

    def __init__(
        self, show: Say, total: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._show, self._total, self._clock = show, total, clock
        self._held: list[str] = []
        self._said = 0
        self._kind, self._when = "", 0.0

    def __call__(self, text: str) -> None:
        self._said += 1
        kind, now = re.sub(r"\d+", "", text), self._clock()
        if kind == self._kind and now - self._when < _PAUSE:
            return
        self._kind, self._when = kind, now
        self._held.append(text if self._total is None else f"[{self._said}/{self._total}] {text}")
        if self._said > 1:
            for line in self._held:
                self._show(line)
            self._held.clear()


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
