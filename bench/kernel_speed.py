"""Bandwidth of the kernels on the device that is here, beside Inductor's and PyTorch's own.

A share is bytes that the definition has to move, over the time, over what copying gigabytes reaches on the
same device. Each figure is the median of rounds in which the contenders take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from bench.plain_table import aligned
from normfuse.clock import clock_of
from normfuse.errors import cause
from normfuse.kernels import linear_rms_norm, rms_norm

__all__ = ["measure", "speed_table"]

WIDTHS = (1024, 4096, 5120, 8192, 16384, 65536)
PRODUCTS = ((1, 768, 2304), (1, 4096, 6144), (16, 4096, 6144), (64, 4096, 6144), (512, 4096, 6144))
_EPS = 1e-6
_VALUES = 1 << 27
_ROUNDS = 7

Run = Callable[[], Any]


@dataclass(frozen=True)
class Contest:
    """One computation, how many bytes it has to move, and who does it."""

    name: str
    shape: tuple[int, ...]
    moved: int
    contenders: dict[str, Run]
    is_graph: bool = True


def measure(until: float) -> dict[str, Any]:
    """Everything, with what it was measured on, until ``time.monotonic()`` is past ``until``."""
    copy, found = _copy_bandwidth(), list[dict[str, Any]]()
    for make, *shape in _CONTESTS:
        if time.monotonic() > until:
            break
        torch.cuda.empty_cache()
        try:
            found.append(_figures(make(*shape), copy))
        except Exception as error:  # the others are measured all the same
            found.append({"kernel": make.__name__, "shape": shape, "error": cause(error)})
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "torch": torch.__version__,
        "copy_GB_per_s": round(copy / 1e9, 1),
        "contests": found,
        "is_whole": time.monotonic() <= until,
    }


def speed_table(found: dict[str, Any]) -> str:
    """Milliseconds and shares of the copy's bandwidth."""
    header = ("kernel", "shape", "contender", "ms", "share of copy")
    return aligned(header, (line for one in found["contests"] for line in _lines(one)))


def _lines(one: dict[str, Any]) -> list[tuple[str, ...]]:
    shape = "x".join(map(str, one["shape"]))
    if "error" in one:
        return [(one["kernel"], shape, one["error"], "", "")]
    shares = one["share_of_copy"]
    times = one["milliseconds"].items()
    return [(one["kernel"], shape, name, f"{time:.4f}", f"{shares[name]:.3f}") for name, time in times]


def _forward(rows: int, width: int) -> Contest:
    x, weight = _bfloat16(rows, width), _bfloat16(width)

    def plain() -> torch.Tensor:
        return F.rms_norm(x, (width,), weight, _EPS)

    runs: dict[str, Run] = {"normfuse": lambda: rms_norm(x, weight, eps=_EPS), "pytorch": plain}
    runs["inductor"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    return Contest("rms_norm forward", (rows, width), 4 * rows * width, runs)


def _added(rows: int, width: int) -> Contest:
    x, residual, weight = _bfloat16(rows, width), _bfloat16(rows, width), _bfloat16(width)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        h = x + residual
        return F.rms_norm(h, (width,), weight, _EPS), h

    runs: dict[str, Run] = {"normfuse": lambda: rms_norm(x, weight, eps=_EPS, residual=residual)}
    runs["inductor"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    return Contest("add and rms_norm forward", (rows, width), 8 * rows * width, runs)


def _backward(rows: int, width: int) -> Contest:
    x, weight = _bfloat16(rows, width).requires_grad_(), _bfloat16(width).requires_grad_()
    arriving = _bfloat16(rows, width)

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (width,), weight, _EPS)

    compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    results = {
        "normfuse": rms_norm(x, weight, eps=_EPS),
        "pytorch": plain(x, weight),
        "inductor": compiled(x, weight),
    }

    def run(y: torch.Tensor) -> Run:
        return lambda: torch.autograd.grad(y, (x, weight), arriving, retain_graph=True)

    runs = {name: run(y) for name, y in results.items()}
    # The engine runs a gradient on the stream of its forward call, which a graph cannot record.
    return Contest("rms_norm backward", (rows, width), 6 * rows * width, runs, is_graph=False)


def _product(rows: int, inputs: int, outputs: int) -> Contest:
    x, weight = _bfloat16(rows, inputs), _bfloat16(outputs, inputs)

    def plain() -> torch.Tensor:
        return F.linear(F.rms_norm(x, (inputs,), None, _EPS), weight)

    def bare() -> torch.Tensor:
        return F.linear(x, weight)

    runs: dict[str, Run] = {"normfuse": lambda: linear_rms_norm(x, weight, eps=_EPS), "without norm": bare}
    runs["inductor"] = torch.compile(plain, mode="max-autotune-no-cudagraphs", dynamic=False)
    moved = 2 * (rows * inputs + rows * outputs + inputs * outputs)
    return Contest("linear_rms_norm", (rows, inputs, outputs), moved, runs)


def _added_product(rows: int, inputs: int, outputs: int) -> Contest:
    x, residual, weight = _bfloat16(rows, inputs), _bfloat16(rows, inputs), _bfloat16(outputs, inputs)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        h = x + residual
        return F.linear(F.rms_norm(h, (inputs,), None, _EPS), weight), h

    def bare() -> tuple[torch.Tensor, torch.Tensor]:
        h = x + residual
        return F.linear(h, weight), h

    runs: dict[str, Run] = {"normfuse": lambda: linear_rms_norm(x, weight, eps=_EPS, residual=residual)}
    for name, function in (("inductor", plain), ("without norm", bare)):
        runs[name] = torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)
    moved = 2 * (3 * rows * inputs + rows * outputs + inputs * outputs)
    return Contest("add and linear_rms_norm", (rows, inputs, outputs), moved, runs)


_CONTESTS: list[tuple[Any, ...]] = [
    *((make, _VALUES // width, width) for width in WIDTHS for make in (_forward, _added, _backward)),
    *((make, *one) for one in PRODUCTS for make in (_product, _added_product)),
]


def _figures(contest: Contest, copy: float) -> dict[str, Any]:
    clocks = {
        name: clock_of(run, torch.device("cuda")) if contest.is_graph else partial(_seconds, run)
        for name, run in contest.contenders.items()
    }
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(_ROUNDS):
        for name, clock in clocks.items():
            times[name].append(clock())
    best = {name: median(found) for name, found in times.items()}
    return {
        "kernel": contest.name,
        "shape": list(contest.shape),
        "milliseconds": {name: round(1e3 * value, 5) for name, value in best.items()},
        "share_of_copy": {name: round(contest.moved / value / copy, 4) for name, value in best.items()},
    }


def _seconds(run: Run) -> float:
    """For one call of several, of which at least the first two warm up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):
        run()
    start.record()
    for _ in range(10):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e4


def _copy_bandwidth() -> float:
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * (1 << 30) / min(_seconds(lambda: target.copy_(source)) for _ in range(_ROUNDS))


def _bfloat16(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)
