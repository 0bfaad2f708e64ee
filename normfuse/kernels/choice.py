"""Which plan of a short list a kernel is run with: measured once for each size on a device, and kept.

A call that is traced, or that becomes part of a CUDA graph, measures nothing: it takes what was measured
before, and the first of the list where nothing was. Under PyTorch's deterministic algorithms it is always the
first, since another plan adds up in another order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch

from normfuse.clock import Clock, clock_of
from normfuse.errors import cause
from normfuse.inductor_compat import cache_folder
from normfuse.kernels.version import versions
from normfuse.measured import Figures, keep_figures, kept_figures, quickest
from normfuse.torch_compat import computes_now, size_hint

__all__ = ["chosen", "described"]

log = logging.getLogger("normfuse")

#: Another plan has to be faster than the first by this much, or the choice would follow the noise.
_MARGIN = 0.97
#: Each is called so often, in turns, and the fastest call counts.
_CALLS = 10

P = TypeVar("P")
_alone = Lock()


def chosen(
    kernel: str, plans: Sequence[P], launch: Callable[[P], object], x: torch.Tensor, rows: int, *form: object
) -> P:
    """The plan that takes the least time for ``rows`` rows on the device of ``x``.

    ``launch`` runs the kernel and may be called any number of times. ``form`` is what its time depends on
    beside the device, the dtype of ``x`` and the rows; these count in powers of two.
    """
    if len(plans) == 1 or not _has_choice(x.device):
        return plans[0]
    key = f"{_name(x.device)}, {kernel}, {x.dtype}, {_up(rows)}, {' '.join(map(str, form))}"
    known = _measured()
    if key not in known and computes_now(x) and not torch.cuda.is_current_stream_capturing():
        with _alone:
            known[key] = _measure(plans, launch, x.device)
        log.info("a kernel on %s: seconds %s", key, known[key][0])
        keep_figures(
            _file(), {one: found for one, found in known.items() if min(found[0].values()) < math.inf}
        )
    best = quickest(known[key], str(plans[0]), _MARGIN, 1.0) if key in known else ""
    return next((plan for plan in plans if str(plan) == best), plans[0])


def described(*values: torch.Tensor | None) -> str:
    """Which of the tensors of a call are there, and in what dtype."""
    return " ".join("-" if value is None else str(value.dtype) for value in values)


def _has_choice(device: torch.device) -> bool:
    is_here = device.type == "cuda" and torch.cuda.is_available()
    return is_here and not torch.are_deterministic_algorithms_enabled()


def _up(rows: int) -> int:
    """The next power of two; of an open size as it was in the example."""
    return 1 << (max(1, size_hint(rows)) - 1).bit_length()


def _measure(plans: Sequence[P], launch: Callable[[P], object], device: torch.device) -> Figures:
    """The shortest times by plan; a plan that does not run on the device takes for ever."""
    clocks = dict[str, Clock]()
    for plan in plans:
        try:
            clocks[str(plan)] = clock_of(partial(launch, plan), device)
        except Exception as error:
            log.info("a kernel does not run as %s: %s", plan, cause(error))
    seconds = {str(plan): math.inf for plan in plans}
    for _ in range(_CALLS):
        for name, clock in clocks.items():
            seconds[name] = min(seconds[name], clock())
    return seconds, dict.fromkeys(seconds, 0.0)


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@cache
def _measured() -> dict[str, Figures]:
    """What this and other processes have measured."""
    return kept_figures(_file(), ())


def _file() -> Path:
    return cache_folder() / f"normfuse-kernels-1-{versions()}.json"
