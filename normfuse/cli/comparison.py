"""One model three ways: eager, Inductor, normfuse. Are they the same function, and how long does each take?

Both compilers are judged against the same float64 oracle, and timed in the same rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor, nn

import normfuse
from normfuse.benchmark.timing import AGAIN, Ratio, Schedule, ratios, run_rounds

if TYPE_CHECKING:
    from normfuse import Equivalence, Report

__all__ = ["BACKENDS", "Comparison", "compare", "compile_with", "latency_table", "verification_table"]

#: The yardstick first.
BACKENDS = ("inductor", "normfuse")

_EAGER = "eager"


@dataclass(frozen=True)
class Comparison:
    """What became of one model under each of ``BACKENDS``."""

    report: Report
    compiled: Mapping[str, Callable[..., Any]]
    equivalence: Mapping[str, Equivalence]
    ratios: Mapping[str, Ratio]
    baseline_seconds: float

    @property
    def ok(self) -> bool:
        """Whether normfuse's answer is as good as the original's."""
        return self.equivalence[BACKENDS[1]].ok

    def to_dict(self) -> dict[str, Any]:
        verification = {k: e.to_dict() for k, e in self.equivalence.items()}
        latency = {name: asdict(ratio) for name, ratio in self.ratios.items()}
        return {
            "report": self.report.to_dict(),
            "verification": verification,
            "baseline_seconds": self.baseline_seconds,
            "latency_over_inductor": latency,
        }


def compile_with(model: nn.Module, backend: str) -> Callable[..., Any]:
    """The model as ``torch.compile`` leaves it with ``backend``."""
    compiled: Callable[..., Any] = torch.compile(model, backend=backend)
    return compiled


def compare(model: nn.Module, args: tuple[Tensor, ...], schedule: Schedule) -> Comparison:
    """Compile copies of ``model`` with each backend, verify on ``args``, and time the calls."""
    with torch.no_grad():
        compiled = {backend: compile_with(copy.deepcopy(model), backend) for backend in BACKENDS}
        for call in compiled.values():
            call(*args)
        report = normfuse.last_report()
        equivalence = {backend: normfuse.verify(model, call, args) for backend, call in compiled.items()}
        contenders: dict[str, Callable[..., Any]] = {_EAGER: model, **compiled}
        calls = {name: (lambda call=call: call(*args)) for name, call in contenders.items()}
        rounds = run_rounds(calls, BACKENDS[0], schedule)
    measured = ratios(rounds)
    baseline_seconds = median(rounds.seconds[BACKENDS[0]])
    return Comparison(report, compiled, equivalence, measured, baseline_seconds)


def verification_table(comparison: Comparison) -> Table:
    """Errors against float64; a ratio of 1 is the original's own error."""
    table = Table("against float64", "error / eager's", "largest error", "verdict", title_justify="left")
    for backend, found in comparison.equivalence.items():
        figure = "" if found.worst is None else found.worst.figure
        table.add_row(backend, figure, f"{found.max_abs_error:.2e}", found.verdict)
    return table


def latency_table(comparison: Comparison) -> Table:
    """Times as ratios to Inductor's, with the interval of the median and the noise floor."""
    table = Table("latency", "time / Inductor's", "95 % interval", "ms")
    table.add_row(BACKENDS[0], "1", "", f"{1e3 * comparison.baseline_seconds:.3f}")
    for name, ratio in comparison.ratios.items():
        label = "inductor again (noise floor)" if name.endswith(AGAIN) else name
        interval = f"{ratio.low:.3f} .. {ratio.high:.3f}"
        table.add_row(label, f"{ratio.median:.3f}", interval, f"{1e3 * ratio.seconds:.3f}")
    return table
