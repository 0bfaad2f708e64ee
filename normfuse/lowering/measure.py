"""Which way to run a norm takes the least time on the device that is here: each is compiled and run once.

What is measured is the norm with what stands around it, in training with its gradients. The figures are kept
by device, sizes, dtypes and versions, so that every norm of a size is measured once on a machine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from normfuse.clock import Clock, clock_of
from normfuse.errors import cause
from normfuse.inductor_compat import cache_folder, compiled_alone
from normfuse.ir.region import region_of
from normfuse.kernels.version import versions
from normfuse.lowering.excerpt import excerpt
from normfuse.lowering.inline import inline_all
from normfuse.lowering.provider import Provider
from normfuse.lowering.trial import Trial
from normfuse.measured import Figures, keep_figures, kept_figures, quickest
from normfuse.torch_compat import outside_tracing

__all__ = ["INDUCTOR", "can_measure", "fastest", "written"]

log = logging.getLogger("normfuse")

INDUCTOR = "inductor"
#: Something else has to be faster than Inductor's own code by this much.
_MARGIN = 0.97
#: Of the 1.5 times the model's own error that a graph may have, one norm may take so much.
_ERROR = 1.25
#: Each is called so often, in turns, and the fastest call counts.
_CALLS = 20

Choice = tuple[str, str]


def can_measure(device: torch.device) -> bool:
    """Whether there is a device of this kind to measure on."""
    return device.type == "cuda" and torch.cuda.is_available()


def fastest(
    norm: Node, apt: Mapping[str, Provider], mode: str | None, given: Mapping[str, Any], trains: bool
) -> Choice:
    """The name of what runs a norm in the least time, ``INDUCTOR`` where nothing is faster, and why.

    ``mode`` and ``given`` are the user's settings of Inductor; ``trains``: whether gradients are taken.
    """
    try:
        found = _figures(norm, apt, mode, given, trains)
    except Exception as error:
        return INDUCTOR, f"the others could not be measured ({cause(error)})"
    best = quickest(found, INDUCTOR, _MARGIN, _ERROR)
    seconds, errors = found
    share = {name: seconds[name] / seconds[INDUCTOR] for name in apt}
    if best != INDUCTOR:
        return best, f"measured, {share[best]:.2f} of Inductor's time"
    fits = {name: errors[name] <= _ERROR * errors[INDUCTOR] for name in apt}
    said = [
        f"{name} {share[name]:.2f} of its time" if fits[name] else f"{name} is not exact enough"
        for name in apt
    ]
    return INDUCTOR, f"measured, {', '.join(said)}"


def _figures(
    norm: Node, apt: Mapping[str, Provider], mode: str | None, given: Mapping[str, Any], trains: bool
) -> Figures:
    device, known = norm.meta["val"].device, _measured()
    settings = f"{mode or 'default'} {sorted(given.items())}{' training' * trains}"
    key = f"{_name(device)}, {excerpt(norm).key}, {' '.join(apt)}, {settings}"
    if key not in known:
        with outside_tracing():
            known[key] = _measure(norm, apt, mode, given, trains)
        log.info("a norm on %s: seconds and errors %s", key, known[key])
        keep_figures(_file(), known)
    return known[key]


def _measure(
    norm: Node, apt: Mapping[str, Provider], mode: str | None, given: Mapping[str, Any], trains: bool
) -> Figures:
    """The shortest times, and the distances from float64 relative to the results, by name."""
    trial = Trial.of(excerpt(norm), trains)
    exact = trial.exact(written(norm, None))
    seconds, errors, clocks = dict[str, float](), dict[str, float](), dict[str, Clock]()
    for name, provider in ((INDUCTOR, None), *apt.items()):
        try:
            if provider is not None:  # its kernels choose their plans here; no traced call can
                trial.step(written(norm, provider))()
            with torch.set_grad_enabled(trains):
                run = compiled_alone(written(norm, provider), trial.inputs, mode, given)
            errors[name] = _distance(trial.step(run)(), exact)
            clocks[name] = clock_of(trial.step(run), norm.meta["val"].device)
        except Exception as error:
            if provider is None:
                raise
            log.info("%s does not run a norm: %s", name, cause(error))
            errors[name] = math.inf
        seconds[name] = math.inf
    for _ in range(_CALLS):
        for name, clock in clocks.items():
            seconds[name] = min(seconds[name], clock())
    return seconds, errors


def written(norm: Node, provider: Provider | None) -> GraphModule:
    """The neighbourhood of a norm as a provider runs it, or as Inductor gets it."""
    found = excerpt(norm)
    region = region_of(found.norm)
    if provider is not None:
        provider.write(found.module, found.norm, region)
    inline_all(found.module)
    return found.module


def _distance(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest of those of the results that are numbers; nan where none are."""
    pairs = zip(found, exact, strict=True)
    apart = [_apart(one.double(), other) for one, other in pairs if other.is_floating_point()]
    return max(apart, default=math.nan)


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Where random inputs have a result; nothing is at no distance from nothing."""
    known = other.isfinite()
    off = float((one - other)[known].norm())
    return off and off / float(other[known].norm())


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def _measured() -> dict[str, Figures]:
    """What this and other processes have measured."""
    return kept_figures(_file(), (INDUCTOR,))


def _file() -> Path:
    return cache_folder() / f"normfuse-lowering-1-{versions(Path(__file__).parent)}.json"
