"""``normfuse.bench``: the protocol over batch sizes and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram

from normfuse.benchmark.machine import machine
from normfuse.benchmark.measure import Cost, measure_rounds
from normfuse.benchmark.remaining import Remaining
from normfuse.benchmark.result import BatchResult, BenchResult
from normfuse.benchmark.settings import Settings
from normfuse.benchmark.subject import Subject
from normfuse.benchmark.timing import Rounds
from normfuse.errors import InputError, NormfuseError
from normfuse.rewriting import check_module
from normfuse.sources import Source

__all__ = ["bench"]

Say = Callable[[str], None]


def bench(
    source: torch.nn.Module | ExportedProgram | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    batch_sizes: Sequence[int | None] = (None,),
    processes: int | None = None,
    cost_runs: int = 1,
    progress: Say = lambda text: None,
    **settings: Any,
) -> BenchResult:
    """How long a model takes eager, under Inductor, under normfuse, and with its norms deleted.

    Every round times all contenders in another order; what counts is the ratio to Inductor's time in the
    same round, as a median over rounds and processes. Inductor takes part twice, and the ratio of its two
    copies is the noise floor.

    Args:
        source: a model or program of this process, timed in this process; or, better, the path of a ``.pt2``
            file or ``"module.path:factory"``, timed in several fresh ones.
        args, kwargs: example inputs, for a model.
        batch_sizes: the inputs are repeated along their first axis; a factory with a parameter ``batch_size``
            is called with each. None takes the example inputs as they are.
        processes: how many; 5 for a path or factory.
        cost_runs: processes per contender for first call and peak memory, with an empty compiler cache; only
            for a path or factory.
        settings: ``training``, ``device``, ``dtype``, ``threads``, ``seconds``, ``contenders``; see
            :class:`normfuse.benchmark.settings.Settings`.

    Raises:
        InputError: for a source without inputs, or settings that do not exist.
        NormfuseError: when a contender cannot run, with its reason.
    """
    asked = _settings(source, settings)
    if isinstance(source, str):
        for batch in batch_sizes:  # errors now, in one sentence
            Subject.of(replace(asked, batch_size=batch)).check()
        count = 5 if processes is None else processes
        if count < 1:
            raise InputError(f"at least one process has to measure, not {count}")
        calls = cost_runs * len(asked.contenders)
        left = Remaining(
            calls * len(batch_sizes), count * len(batch_sizes), asked.seconds, len(asked.contenders)
        )
        runner: _Runner = _Fresh(progress, count, cost_runs, left)
    else:
        if processes not in (None, 1):
            raise InputError(
                "a model object is timed in this process; pass module.path:factory to use several"
            )
        runner, count = _Here(progress, _given(source, args, kwargs)), 1
    batches = tuple(runner.run(replace(asked, batch_size=batch)) for batch in batch_sizes)
    return BenchResult(asked, count, machine(asked.device), batches)


def _settings(source: Any, settings: Mapping[str, Any]) -> Settings:
    named = {**settings, "source": source if isinstance(source, str) else ""}
    if "contenders" in named:
        named["contenders"] = tuple(named["contenders"])
    unknown = [name for name in named if name not in Settings.__dataclass_fields__]
    if unknown:
        raise InputError(f"bench has no option {unknown[0]!r}")
    asked = Settings(**named)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("this PyTorch sees no CUDA device")
    return asked


def _given(source: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Source:
    given: object = args
    if isinstance(given, torch.Tensor):
        raise InputError("args takes a tuple of example inputs; write (x,) for one tensor")
    if isinstance(source, ExportedProgram) and not args and not kwargs:
        args, kwargs = source.example_inputs or ((), {})
    if not isinstance(source, ExportedProgram):
        check_module(source)
    return Source(type(source).__name__, source, tuple(args), dict(kwargs or {}))


class _Here:
    """Measures a model of this process."""

    def __init__(self, progress: Say, given: Source) -> None:
        self._progress, self._given = progress, given

    def run(self, settings: Settings) -> BatchResult:
        self._progress(_label(settings, "timing"))
        return BatchResult.of(settings.batch_size, [measure_rounds(settings, self._given)], {})


class _Fresh:
    """Measures in fresh processes."""

    def __init__(self, progress: Say, processes: int, cost_runs: int, left: Remaining) -> None:
        self._progress, self._processes, self._cost_runs, self._left = progress, processes, cost_runs, left

    def run(self, settings: Settings) -> BatchResult:
        costs: dict[str, list[Cost]] = {name: [] for name in settings.contenders}
        for number in range(self._cost_runs):
            for name in _rotated(settings.contenders, number):
                self._progress(_label(settings, f"first call of {name}{self._left}"))
                with self._left.measured("calls"):
                    costs[name].append(_cost(settings, name))
        rounds = []
        for number in range(self._processes):
            self._progress(_label(settings, f"process {number + 1} of {self._processes}{self._left}"))
            with self._left.measured("processes"):
                rounds.append(Rounds.from_json(run_child(settings)))
        return BatchResult.of(settings.batch_size, rounds, {k: v for k, v in costs.items() if v})


_Runner = _Here | _Fresh


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _label(settings: Settings, what: str) -> str:
    return what if settings.batch_size is None else f"batch {settings.batch_size}: {what}"


def _cost(settings: Settings, name: str) -> Cost:
    with tempfile.TemporaryDirectory(prefix="normfuse-bench-") as cache:
        return Cost(**json.loads(run_child(settings, name, cache=cache)))


def run_child(settings: Settings, *names: str, cache: str | None = None) -> str:
    """The last line that one process of the measurement prints.

    Raises:
        NormfuseError: when it fails, with its last words.
    """
    environment = {**os.environ, **({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})}
    environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)  # noqa: PTH109
    command = [sys.executable, "-m", "normfuse.benchmark.child", settings.to_json(), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise NormfuseError(
            f"a measuring process failed: {lines[-1] if lines else f'status {done.returncode}'}"
        )
    return done.stdout.strip().splitlines()[-1]
