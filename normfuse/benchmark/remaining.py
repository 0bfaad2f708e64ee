"""How long a measurement will still take, from the parts of it that are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import mean

__all__ = ["Remaining", "duration"]

Clock = Callable[[], float]


class Remaining:
    """``calls`` first calls, and ``processes`` processes of ``seconds`` each, which compile as well.

    A process has ``contenders`` first calls ahead of its rounds, until one has shown what it really takes.
    """

    def __init__(
        self, calls: int, processes: int, seconds: float, contenders: int, clock: Clock = time.perf_counter
    ) -> None:
        self._left = {"calls": calls, "processes": processes}
        self._took: dict[str, list[float]] = {"calls": [], "processes": []}
        self._seconds, self._contenders, self._clock = seconds, contenders, clock

    @property
    def at_least(self) -> float:
        """Seconds that the rounds take, however quickly everything compiles."""
        return self._left["processes"] * self._seconds

    def __str__(self) -> str:
        """``, about 3 minutes left``, or nothing before the first measurement."""
        found = self.estimate()
        return "" if found is None else f", about {duration(found)} left"

    def estimate(self) -> float | None:
        """Seconds; None before anything was measured."""
        if not any(self._took.values()):
            return None
        call = mean(self._took["calls"] or [0.0])
        process = mean(self._took["processes"] or [self._seconds + self._contenders * call])
        return self._left["calls"] * call + self._left["processes"] * process

    @contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """A first call (``"calls"``) or a process (``"processes"``) that takes as long as the block."""
        start = self._clock()
        yield
        self._left[what] -= 1
        self._took[what].append(self._clock() - start)


def duration(seconds: float) -> str:
    """``40 seconds`` or ``9 minutes``."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} second{'s' if round(seconds) > 1 else ''}"
    return f"{round(seconds / 60)} minutes"
