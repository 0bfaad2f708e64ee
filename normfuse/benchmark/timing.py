"""Interleaved timing for machines that are not quiet.

Every round times all contenders in another order, and what counts is the ratio to the baseline of the
*same* round: a neighbour that takes half the machine for a second slows both sides of the fraction.
A call that is not counted comes before each sample, so that nobody pays for what the one before left in
the caches. The baseline takes part twice; the ratio of the two copies is the noise floor, and a
difference smaller than that is none.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

__all__ = [
    "AGAIN",
    "ENOUGH",
    "Ratio",
    "Rounds",
    "Schedule",
    "median_interval",
    "merge",
    "quiet_collector",
    "ratios",
    "run_rounds",
]

#: Suffix of the baseline's second copy.
AGAIN = " (again)"
#: So many processes have two among them between which the true median lies 19 times in 20.
ENOUGH = 6

Contender = Callable[[], object]


@dataclass(frozen=True)
class Schedule:
    """How long to measure.

    Attributes:
        seconds: time after which no further round begins, once ``min_rounds`` are complete.
        min_rounds, max_rounds: bounds on the number of rounds, whatever the time.
        warm_up: calls of each contender that are not counted.
        sample: seconds that one sample should last; quicker contenders are called repeatedly.
    """

    seconds: float = 10.0
    min_rounds: int = 12
    max_rounds: int = 1000
    warm_up: int = 3
    sample: float = 0.005


@dataclass(frozen=True)
class Rounds:
    """Seconds per call of every contender, one entry per round and contender."""

    baseline: str
    seconds: Mapping[str, Sequence[float]]

    def to_json(self) -> str:
        seconds = {name: list(own) for name, own in self.seconds.items()}
        return json.dumps({"baseline": self.baseline, "seconds": seconds})

    @classmethod
    def from_json(cls, text: str) -> Rounds:
        data = json.loads(text)
        return cls(data["baseline"], data["seconds"])


@dataclass(frozen=True)
class Ratio:
    """One contender's time over the baseline's: the median, and an interval that covers it 19 times in 20.

    ``seconds`` is the contender's own median, for the reader; comparisons belong to the ratio.
    """

    name: str
    median: float
    low: float
    high: float
    seconds: float

    @property
    def spread(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def run_rounds(
    contenders: Mapping[str, Contender],
    baseline: str,
    schedule: Schedule = Schedule(),
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Time ``contenders`` and a second copy of the one named ``baseline``, interleaved."""
    if baseline not in contenders:
        raise KeyError(f"the baseline {baseline!r} is none of the contenders: {', '.join(contenders)}")
    lineup = {**contenders, baseline + AGAIN: contenders[baseline]}
    repeats = {name: _warm_up(call, schedule, clock) for name, call in lineup.items()}
    seconds: dict[str, list[float]] = {name: [] for name in lineup}
    start = clock()
    with quiet_collector():
        for order in _orders(list(lineup), schedule.max_rounds):
            for name in order:
                lineup[name]()
                seconds[name].append(_timed(lineup[name], repeats[name], clock))
            if len(seconds[baseline]) >= schedule.min_rounds and clock() - start >= schedule.seconds:
                break
    return Rounds(baseline, seconds)


def _orders(names: list[str], rounds: int) -> Iterator[list[str]]:
    """Orders in which everyone comes after everyone else equally often (a Williams design).

    Rotation alone would let each one always follow the same neighbour.
    """
    n = len(names)
    zigzag = [(i + 1) // 2 if i % 2 else (n - i // 2) % n for i in range(n)]
    for i in range(rounds):
        order = [names[(place + i) % n] for place in zigzag]
        yield order if i // n % 2 == 0 else order[::-1]


def _warm_up(call: Contender, schedule: Schedule, clock: Callable[[], float]) -> int:
    """Call it, and return how many calls fill one sample."""
    fastest = min(_timed(call, 1, clock) for _ in range(max(schedule.warm_up, 1)))
    return max(1, math.ceil(schedule.sample / fastest)) if fastest > 0 else 1


def _timed(call: Contender, repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection inside, since it would hit whoever is being timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def ratios(rounds: Rounds) -> dict[str, Ratio]:
    """Median and interval of the paired ratios of one process, for everyone but the baseline."""
    base = rounds.seconds[rounds.baseline]
    result = {}
    for name, own in rounds.seconds.items():
        if name != rounds.baseline:
            paired = [a / b for a, b in zip(own, base, strict=True)]
            result[name] = Ratio(name, median(paired), *median_interval(paired), median(own))
    return result


def merge(processes: Sequence[Rounds]) -> dict[str, Ratio]:
    """The same over several processes, each counting once.

    Rounds of one process share its memory layout and its luck, so a thousand of them say less about
    the next process than five processes do: the interval is that of the processes' medians.
    """
    if len(processes) == 1:
        return ratios(processes[0])
    each = [ratios(p) for p in processes]
    result = {}
    for name in each[0]:
        medians = [r[name].median for r in each]
        seconds = median(r[name].seconds for r in each)
        result[name] = Ratio(name, median(medians), *median_interval(medians), seconds)
    return result


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values between which the true median lies with at least 95 % probability.

    The number of values below the true median is binomial with p = 1/2, whatever their distribution; the
    k-th smallest and the k-th largest miss it with probability 2 P(B < k). With fewer than six
    values no k >= 1 is safe enough, and the extremes are returned.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.5**n, 1
    while k < n // 2 and 2 * (below + math.comb(n, k) * 0.5**n) <= 0.05:
        below += math.comb(n, k) * 0.5**n
        k += 1
    return ordered[k - 1], ordered[n - k]
