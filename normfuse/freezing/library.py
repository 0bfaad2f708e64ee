"""Which library multiplies: MKL, which Inductor takes for float32, or oneDNN, whichever is faster here.

On some processors oneDNN's packed products take two thirds of MKL's time, on others MKL's are faster, so both
are measured on the weight itself, once for each size on a machine. Inductor compares the winner with its own
kernels, where it may.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from normfuse.errors import cause
from normfuse.files import write_text
from normfuse.inductor_compat import cache_folder, is_packable, register_product
from normfuse.torch_compat import outside_tracing

__all__ = ["choosing_libraries"]

log = logging.getLogger("normfuse")

#: oneDNN has to be faster by this much, since what stands behind a product is compiled for MKL's as well.
_MARGIN = 0.97
#: Each is called so often, in turns, and the fastest call counts.
_CALLS = 5

_here = threading.local()


@contextmanager
def choosing_libraries() -> Iterator[None]:
    """Within it, Inductor's freezing packs each weight for the library that is faster with it."""
    _register()
    _here.chooses = True
    try:
        yield
    finally:
        _here.chooses = False


@cache
def _register() -> None:
    """Put a pattern before Inductor's own, which applies only within :func:`choosing_libraries`."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return
    try:
        register_product(_prefers_onednn, _pack)
    except Exception as error:  # another Inductor: it packs for MKL, as it does without normfuse
        log.info("Inductor chooses the library of products: %s", cause(error))


def _prefers_onednn(match: Any) -> bool:
    if not getattr(_here, "chooses", False):
        return False
    node = match.output_node()
    data, weight = node.args[-2:]
    if not is_packable(match) or weight.op != "get_attr":
        return False
    rows, held = data.meta["val"].shape[0], getattr(node.graph.owning_module, weight.target)
    if not isinstance(rows, int) or held.dtype != torch.float32 or data.meta["val"].dtype != torch.float32:
        return False
    return _onednn_is_faster(rows, held)


def _pack(match: Any, *args: Any, **kwargs: Any) -> None:
    """Write a product as oneDNN's, with the weight packed, which is computed when the graph is frozen."""
    node: Node = match.output_node()
    bias = node.args[0] if len(node.args) == 3 and node.kwargs.get("beta", 1.0) != 0.0 else None
    data, weight = node.args[-2:]
    rows = data.meta["val"].shape[0]  # type: ignore[union-attr]
    graph = match.graph
    with graph.inserting_before(node):
        turned = graph.call_function(torch.ops.aten.permute.default, (weight, (1, 0)))
        packed = graph.call_function(torch.ops.mkldnn._reorder_linear_weight.default, (turned, rows))
        made = graph.call_function(
            torch.ops.mkldnn._linear_pointwise.default, (data, packed, bias, "none", [], "")
        )
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _onednn_is_faster(rows: int, weight: torch.Tensor) -> bool:
    """Measured, or as it was measured before on this machine."""
    key = f"{rows} x {weight.shape[0]} x {weight.shape[1]}, {torch.get_num_threads()} threads"
    known = _measured()
    if key not in known:
        known[key] = _measure(rows, weight)
        log.info("a product of %s: MKL %.3g s, oneDNN %.3g s", key, *known[key])
        _remember(known)
    mkl, onednn = known[key]
    return onednn < _MARGIN * mkl


def _measure(rows: int, weight: torch.Tensor) -> list[float]:
    """The shortest times of the two, in seconds."""
    with outside_tracing():
        data, turned = torch.randn(rows, weight.shape[0]), weight.detach().t()
        for_mkl = torch.ops.mkl._mkl_reorder_linear_weight(turned.contiguous(), rows)
        for_onednn = torch.ops.mkldnn._reorder_linear_weight(turned, rows)
        contenders: list[Callable[[], object]] = [
            lambda: torch.ops.mkl._mkl_linear(data, for_mkl, turned, None, rows),
            lambda: torch.ops.mkldnn._linear_pointwise(data, for_onednn, None, "none", [], ""),
        ]
        best = [float("inf")] * len(contenders)
        for _ in range(_CALLS):
            for place, call in enumerate(contenders):
                started = time.perf_counter()
                call()
                best[place] = min(best[place], time.perf_counter() - started)
    return best


@cache
def _measured() -> dict[str, list[float]]:
    """What this and other processes have measured, by rows and the sizes of the weight."""
    try:
        held = json.loads(_file().read_text())
        return {str(key): [float(a), float(b)] for key, (a, b) in held.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(known: dict[str, list[float]]) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(), json.dumps(known, indent=1))
    except OSError as error:
        log.info("what was measured is not kept: %s", error)


def _file() -> Path:
    name = f"normfuse-products-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}.json"
    return cache_folder() / name
