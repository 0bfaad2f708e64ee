"""Which library multiplies fastest, of those that are precise enough: measured on the weight itself.

Each is measured once for each size on a machine, and the figures are kept beside what Inductor compiles. The
weights of a model that is larger than the last cache are read from memory at every call, so there the caches
are emptied of a weight before each measurement: which library is fastest differs between the two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import torch

from normfuse.freezing.blocks import blocks
from normfuse.freezing.caches import evict, last_cache
from normfuse.freezing.large_pages import Arena, put_together
from normfuse.inductor_compat import cache_folder
from normfuse.measured import Figures, keep_figures, kept_figures, quickest
from normfuse.torch_compat import outside_tracing

__all__ = ["BLOCKS", "MKL", "ONEDNN", "PLAIN", "best_of", "fastest", "fastest_for_any", "figures"]

log = logging.getLogger("normfuse")

#: Another product has to be faster than the model's own by this much.
_MARGIN = 0.97
#: The same for one row, where a copy of the weight leaves the original for the checks to fetch.
_MARGIN_OF_ONE_ROW = 0.85
#: Of the 1.5 times the model's own error that a graph may have, a product may take so much.
_ERROR = 1.25
#: Each is called so often, in turns, and the fastest call counts; what takes so many seconds, less often.
_CALLS, _FEW_CALLS, _LONG = 5, 2, 0.03
#: What stands for few rows where their number may change.
_FEW_ROWS = 2
#: Rows and columns of a product that are compared with float64.
_COMPARED = 1024
#: Of a product with more multiplications, so many are measured, on a part of its columns: beyond the caches
#: each column takes as long as the next one, in every library.
_MEASURED = 1 << 28

PLAIN, MKL, ONEDNN, BLOCKS = "plain", "mkl", "onednn", "blocks"


def fastest(rows: int, weight: torch.Tensor, total: int, among: Collection[str] = ()) -> str:
    """The library for a weight ``[in, out]`` of a model whose weights are ``total`` bytes.

    ``among`` are the names to choose from beside ``PLAIN``, all of them without any.
    """
    return best_of(figures(rows, weight, total), rows, among)


def fastest_for_any(rows: int, weight: torch.Tensor, total: int) -> str:
    """The same for a number of rows that may change, and is ``rows`` to begin with.

    How the libraries add up depends on that number, so only blocks are compared with the model's own product.
    They have to be faster for few rows as well.
    """
    is_faster = all(fastest(n, weight, total, (BLOCKS,)) == BLOCKS for n in (_FEW_ROWS, rows))
    return BLOCKS if is_faster else PLAIN


def best_of(found: Figures, rows: int, among: Collection[str] = ()) -> str:
    """The fastest library among those that are precise enough."""
    if among:
        seconds, errors = found
        names = {PLAIN, *among} & seconds.keys()
        found = {n: seconds[n] for n in names}, {n: errors[n] for n in names}
    return quickest(found, PLAIN, _MARGIN_OF_ONE_ROW if rows == 1 else _MARGIN, _ERROR)


def figures(rows: int, weight: torch.Tensor, total: int) -> Figures:
    """Seconds and errors by library for a weight ``[in, out]``: measured, or as they were on this machine.

    ``total``: the bytes of all weights that are read in between two products with this one.
    """
    is_cold = total > last_cache()
    order = "x".join(map(str, weight.stride()))
    key = f"{rows} x {weight.shape[0]} x {weight.shape[1]}, {order}, {torch.get_num_threads()} threads, "
    key += f"{weight.dtype}, ".removeprefix("torch.") if weight.dtype != torch.float32 else ""
    key += torch.get_float32_matmul_precision() + (", from memory" if is_cold else "")
    known = _measured()
    if key not in known:
        known[key] = _measure(rows, weight, is_cold)
        log.info("a product of %s: seconds and errors %s", key, known[key])
        _remember(known)
    return known[key]


def _measure(rows: int, weight: torch.Tensor, is_cold: bool) -> Figures:
    """The shortest times, in seconds, and the distances from float64 relative to the result, by library."""
    with outside_tracing():
        columns = _columns(rows, *weight.shape)
        parts, weight = weight.shape[1] / max(1, columns), weight.detach().narrow(1, 0, columns)
        data, turned = torch.randn(rows, weight.shape[0]).to(weight.dtype), weight.t()
        contenders: dict[str, tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {
            PLAIN: (turned, lambda: torch.mm(data, turned.t())),
        }
        if weight.dtype == torch.float32:
            for_mkl = torch.ops.mkl._mkl_reorder_linear_weight(turned.contiguous(), rows)
            by_mkl = torch.ops.mkl._mkl_linear
            contenders[MKL] = for_mkl, lambda: by_mkl(data, for_mkl, turned, None, rows)
        by_onednn = torch.ops.mkldnn._linear_pointwise
        for_onednn = torch.ops.mkldnn._reorder_linear_weight(turned, rows)
        contenders[ONEDNN] = for_onednn, lambda: by_onednn(data, for_onednn, None, "none", [], "")
        if own := blocks():
            packed = own.pack(weight)
            packed = Arena(packed.nbytes).keep(packed)
            contenders[BLOCKS] = packed, lambda: own.multiply(data, packed, None, weight.shape[1])
        put_together(held for held, _ in contenders.values() if held is not turned)
        exact = data[:_COMPARED].double() @ turned[:_COMPARED].double().t()
        seconds, errors = dict.fromkeys(contenders, float("inf")), dict[str, float]()
        for turn in range(_CALLS):
            if turn == _FEW_CALLS and min(seconds.values()) > parts * _LONG:
                break
            for name, (held, call) in contenders.items():
                if turn and errors[name] > _ERROR * errors[PLAIN]:
                    continue  # it is not taken, however fast it is
                if is_cold:
                    evict(held)
                started = time.perf_counter()
                found = call()
                seconds[name] = min(seconds[name], parts * (time.perf_counter() - started))
                if not turn:
                    part = found[:_COMPARED, :_COMPARED].double()
                    errors[name] = float((part - exact).norm() / exact.norm())
    return seconds, errors


def _columns(rows: int, terms: int, columns: int) -> int:
    """How many columns of a product are measured: enough to be compared, and for caches to be full."""
    return min(columns, max(_COMPARED, _MEASURED // max(1, rows * terms)))


@cache
def _measured() -> dict[str, Figures]:
    """What this and other processes have measured, by rows and the sizes of the weight."""
    return kept_figures(_file(), (PLAIN, ONEDNN))


def _remember(known: dict[str, Figures]) -> None:
    keep_figures(_file(), known)


def _file() -> Path:
    name = f"normfuse-products-8-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}.json"
    return cache_folder() / name
