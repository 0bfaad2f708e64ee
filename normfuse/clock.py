"""How long a call takes on the device that it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Clock", "clock_of"]

Clock = Callable[[], float]
"""Runs something and says how many seconds one run took."""

#: So many replays of a CUDA graph are timed together: one may take less than a tick.
_REPLAYS = 10


def clock_of(run: Callable[[], Any], device: torch.device) -> Clock:
    """On a GPU of the kernels alone, as in a CUDA graph: what launches them differs between programs."""
    return _of_graph(run) if device.type == "cuda" else lambda: _seconds(run)


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _of_graph(run: Callable[[], Any]) -> Clock:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()

    def seconds() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        for _ in range(_REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / _REPLAYS

    return seconds
