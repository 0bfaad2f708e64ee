"""Which library multiplies: MKL, which Inductor takes for float32, oneDNN, or the one that the model calls.

On some processors oneDNN's packed products take two thirds of MKL's time, on others MKL's are faster. And
they add up in other orders: for few rows a packed product may be 2.5 times as far from float64 as the model's
own. So each is measured on the weight itself, once for each size on a machine, and the fastest one is taken
whose error is within the budget.
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

__all__ = ["choosing_libraries", "fastest"]

log = logging.getLogger("normfuse")

#: A packed product has to be faster than the model's own by this much.
_MARGIN = 0.97
#: Of the 1.5 times the model's own error that a graph may have, a product may take so much.
_ERROR = 1.25
#: Each is called so often, in turns, and the fastest call counts.
_CALLS = 5
#: Rows and columns of a product that are compared with float64.
_COMPARED = 1024

_PLAIN, _MKL, _ONEDNN = "plain", "mkl", "onednn"

_here = threading.local()


@contextmanager
def choosing_libraries() -> Iterator[None]:
    """Within it, Inductor's freezing packs each weight for the library that is best with it, or for none."""
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
        register_product(_is_ours, _write)
    except Exception as error:  # another Inductor: it packs for MKL, as it does without normfuse
        log.info("Inductor chooses the library of products: %s", cause(error))


def _is_ours(match: Any) -> bool:
    """Whether a product is not to be packed for MKL, as Inductor does."""
    if not getattr(_here, "chooses", False) or not is_packable(match):
        return False
    node = match.output_node()
    data, weight = node.args[-2:]
    if weight.op != "get_attr" or data.meta["val"].dtype != torch.float32:
        return False
    return _choice(node) != _MKL


def _choice(node: Node) -> str:
    data, weight = node.args[-2:]
    rows = data.meta["val"].shape[0]  # type: ignore[union-attr]
    held = getattr(node.graph.owning_module, str(weight.target))  # type: ignore[union-attr]
    if not isinstance(rows, int) or held.dtype != torch.float32:
        return _PLAIN  # how a product adds up depends on the number of rows
    return fastest(rows, held)


def _write(match: Any, *args: Any, **kwargs: Any) -> None:
    """Write a product as oneDNN's, with the weight packed when the graph is frozen, or so that it stays."""
    node: Node = match.output_node()
    data, weight = node.args[-2:]
    graph = match.graph
    with graph.inserting_before(node):
        turned = graph.call_function(torch.ops.aten.permute.default, (weight, (1, 0)))
        if _choice(node) == _PLAIN:
            again = graph.call_function(torch.ops.aten.permute.default, (turned, (1, 0)))
            again.meta["val"] = weight.meta["val"]  # type: ignore[union-attr]
            node.args = (*node.args[:-1], again)
            return
        rows = data.meta["val"].shape[0]  # type: ignore[union-attr]
        bias = node.args[0] if len(node.args) == 3 and node.kwargs.get("beta", 1.0) != 0.0 else None
        packed = graph.call_function(torch.ops.mkldnn._reorder_linear_weight.default, (turned, rows))
        made = graph.call_function(
            torch.ops.mkldnn._linear_pointwise.default, (data, packed, bias, "none", [], "")
        )
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def fastest(rows: int, weight: torch.Tensor) -> str:
    """The library for a weight of the sizes ``[in, out]``: measured, or as it was before on this machine."""
    order = "x".join(map(str, weight.stride()))
    key = f"{rows} x {weight.shape[0]} x {weight.shape[1]}, {order}, {torch.get_num_threads()} threads, "
    key += torch.get_float32_matmul_precision()
    known = _measured()
    if key not in known:
        known[key] = _measure(rows, weight)
        log.info("a product of %s: seconds and errors %s", key, known[key])
        _remember(known)
    seconds, errors = known[key]
    fits = [name for name in (_MKL, _ONEDNN) if errors[name] <= _ERROR * errors[_PLAIN]]
    best = min(fits, key=seconds.__getitem__, default=_PLAIN)
    return best if seconds[best] < _MARGIN * seconds[_PLAIN] else _PLAIN


_Figures = tuple[dict[str, float], dict[str, float]]


def _measure(rows: int, weight: torch.Tensor) -> _Figures:
    """The shortest times, in seconds, and the distances from float64 relative to the result, by library."""
    with outside_tracing():
        data, turned = torch.randn(rows, weight.shape[0]), weight.detach().t()
        for_mkl = torch.ops.mkl._mkl_reorder_linear_weight(turned.contiguous(), rows)
        for_onednn = torch.ops.mkldnn._reorder_linear_weight(turned, rows)
        contenders: dict[str, Callable[[], torch.Tensor]] = {
            _PLAIN: lambda: torch.mm(data, turned.t()),
            _MKL: lambda: torch.ops.mkl._mkl_linear(data, for_mkl, turned, None, rows),
            _ONEDNN: lambda: torch.ops.mkldnn._linear_pointwise(data, for_onednn, None, "none", [], ""),
        }
        exact = data[:_COMPARED].double() @ turned[:_COMPARED].double().t()
        seconds, errors = dict.fromkeys(contenders, float("inf")), dict[str, float]()
        for _ in range(_CALLS):
            for name, call in contenders.items():
                started = time.perf_counter()
                found = call()
                seconds[name] = min(seconds[name], time.perf_counter() - started)
                part = found[:_COMPARED, :_COMPARED].double()
                errors[name] = float((part - exact).norm() / exact.norm())
    return seconds, errors


@cache
def _measured() -> dict[str, _Figures]:
    """What this and other processes have measured, by rows and the sizes of the weight."""
    names = (_PLAIN, _MKL, _ONEDNN)
    try:
        held = json.loads(_file().read_text())
        return {
            str(key): ({n: float(seconds[n]) for n in names}, {n: float(errors[n]) for n in names})
            for key, (seconds, errors) in held.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _remember(known: dict[str, _Figures]) -> None:
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(), json.dumps(known, indent=1))
    except OSError as error:
        log.info("what was measured is not kept: %s", error)


def _file() -> Path:
    name = f"normfuse-products-2-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}.json"
    return cache_folder() / name
