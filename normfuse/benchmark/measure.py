"""What happens in one process: rounds of all contenders, or the costs of one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from normfuse.benchmark.contenders import contender
from normfuse.benchmark.memory import peak_bytes, reset_peak
from normfuse.benchmark.settings import BASELINE, Settings
from normfuse.benchmark.subject import Subject
from normfuse.benchmark.timing import Rounds, Schedule, run_rounds
from normfuse.sources import Source

__all__ = ["Cost", "measure_cost", "measure_rounds"]

Clock = Callable[[], float]


@dataclass(frozen=True)
class Cost:
    """What a contender costs besides time per call.

    ``first_call`` are the seconds of the first call, which compiles; ``peak_bytes`` the most memory during
    a later call: allocated on CUDA, resident in the whole process on a CPU, None where unknown.
    """

    first_call: float
    peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_rounds(settings: Settings, given: Source | None = None, clock: Clock | None = None) -> Rounds:
    """Seconds per call of every contender, interleaved."""
    with _prepared(settings):
        subject = Subject.of(settings, given)
        calls = {name: _call(name, subject) for name in settings.contenders}
        return run_rounds(calls, BASELINE, Schedule(seconds=settings.seconds), clock or _clock(settings))


def _call(name: str, subject: Subject) -> Callable[[], object]:
    """With weights of its own, so that none finds them in the caches, or has them changed, by another."""
    own = replace(subject, model=copy.deepcopy(subject.model))
    return own.call(contender(name, own))


def measure_cost(settings: Settings, name: str, given: Source | None = None) -> Cost:
    """First call and peak memory of one contender; to be called in a process of its own."""
    with _prepared(settings):
        subject = Subject.of(settings, given)
        call, clock = subject.call(contender(name, subject)), _clock(settings)
        start = clock()
        call()
        first = clock() - start
        call()
        reset_peak(settings.device)
        call()
        return Cost(first, peak_bytes(settings.device))


@contextmanager
def _prepared(settings: Settings) -> Iterator[None]:
    """Seeded, with the number of threads and the grad mode that the settings name."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(settings.threads or threads)
    try:
        with torch.set_grad_enabled(settings.training):
            yield
    finally:
        torch.set_num_threads(threads)


def _clock(settings: Settings) -> Clock:
    """Seconds; on CUDA after everything that was launched is done."""
    if not settings.device.startswith("cuda"):
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize(settings.device)
        return time.perf_counter()

    return synchronized
