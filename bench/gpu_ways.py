"""The graphs that a model is compiled as: by PyTorch, by normfuse with its norms run in several ways, and
without norms.

The model stands on the CPU, and nothing is run. Only one function of normfuse asks whether kernels can run on
a device; it is told that they can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import normfuse
from bench.gpu_count import count
from normfuse.backends.without_norms import WithoutNorms
from normfuse.lowering import choose
from normfuse.lowering.deferred import DEFERRED
from normfuse.lowering.excerpt import excerpt
from normfuse.lowering.measure import INDUCTOR, written
from normfuse.lowering.product import ADD_PRODUCT, PRODUCT
from normfuse.lowering.provider import Provider

__all__ = ["FORWARD", "TRAINING", "Traced", "traced"]


@dataclass(frozen=True)
class Traced:
    """A graph as Inductor gets it, and the values that it is compiled for."""

    module: GraphModule
    values: list[Tensor]


Backend = Callable[..., Any]
#: With at most so many rows a product takes the time that reading its weights takes.
_FEW = 64


def _normfuse(lower: str) -> Backend:
    def backend(gm: GraphModule, values: Sequence[Any]) -> Any:
        options = {"normfuse.freeze": "off", "normfuse.lower": lower}
        return normfuse.normfuse_backend(gm, values, options=options)

    return backend


def _best(gm: GraphModule, values: Sequence[Any]) -> Any:
    """What normfuse would do on a device whose times were the estimated ones."""
    places = "normfuse.lowering.choose."
    with mock.patch(f"{places}_default", return_value=None), mock.patch(f"{places}fastest", _cheapest):
        return _normfuse("auto")(gm, values)


def _cheapest(
    norm: Node, apt: Mapping[str, Provider], mode: str | None, given: Mapping[str, Any], trains: bool
) -> tuple[str, str]:
    """By bytes and launches. They do not say how fast a kernel multiplies many rows, so that is out."""
    rows = norm.meta["val"].numel() // norm.meta["val"].shape[-1]
    fitting = {n: way for n, way in apt.items() if rows <= _FEW or not n.startswith(PRODUCT.name)}
    inputs = [one.requires_grad_(trains and one.is_floating_point()) for one in excerpt(norm).inputs]
    times = {
        name: count(written(norm, way), inputs, trains).seconds
        for name, way in {INDUCTOR: None, **fitting}.items()
    }
    return min(times, key=times.__getitem__), "estimated"


def _product(gm: GraphModule, values: Sequence[Any]) -> Any:
    """Every norm in the product that reads it."""
    with mock.patch.dict(choose._WAYS, {"deferred": (ADD_PRODUCT, PRODUCT, DEFERRED)}):
        return _normfuse("deferred")(gm, values)


#: None for PyTorch's own backend.
FORWARD: dict[str, Backend | None] = {
    "Inductor": None,
    "normfuse": _best,
    "norms by Inductor": _normfuse("inductor"),
    "kernels": _normfuse("triton"),
    "deferred": _normfuse("deferred"),
    "linear_rms_norm": _product,
    "norms deleted": WithoutNorms(),
}
TRAINING: dict[str, Backend | None] = {
    name: FORWARD[name] for name in ("Inductor", "normfuse", "kernels", "norms deleted")
}


class _DoneError(Exception):
    """In the place of running the model."""


def traced(model: nn.Module, inputs: Sequence[Tensor], way: Backend | None) -> Traced:
    """What Inductor would compile for a call of ``model``."""
    found: list[Traced] = []

    def keep(gm: GraphModule, values: Sequence[Any], *_: Any) -> Any:
        found.append(Traced(gm, [value for value in values if isinstance(value, Tensor)]))
        return _stop

    places = ("normfuse.backends.inner.run_inner", "normfuse.backends.without_norms.run_inner")
    torch._dynamo.reset()
    with ExitStack() as patches:
        for place in places:
            patches.enter_context(mock.patch(place, keep))
        patches.enter_context(mock.patch("normfuse.kernels.device._INTERPRETED", True))
        with suppress(_DoneError):
            torch.compile(model, backend=way or keep, fullgraph=True, dynamic=False)(*inputs)
    return found[0]


def _stop(*_: Any) -> Any:
    raise _DoneError
