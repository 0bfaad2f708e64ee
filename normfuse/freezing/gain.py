"""What constant weights are worth: how long products take as the model calls them, and how long frozen."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from normfuse.errors import cause
from normfuse.freezing.fastest import PLAIN, best_of, figures
from normfuse.freezing.products import LINEAR, Product
from normfuse.ir.calls import bind
from normfuse.ir.sizes import tensor_of
from normfuse.torch_compat import outside_tracing, size_hint

__all__ = ["Seconds", "time_of_products"]

log = logging.getLogger("normfuse")

#: Each way to convolve is called so often, in turns, and the fastest call counts.
_CALLS = 3

Seconds = tuple[float, float]


def time_of_products(found: Sequence[Product]) -> Seconds | None:
    """Seconds of all products as they are, and with constant weights, each measured here by itself.

    Products of equal sizes are measured once. None where a product is not in float32 or cannot be called
    alone, or a library is missing.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return None
    total = sum(product.bytes for product in found)
    alike: dict[str, list[Product]] = defaultdict(list)
    for product in found:
        weight = tensor_of(product.weight)
        if weight is None or weight.dtype != torch.float32:
            return None
        given = map_arg((product.node.args, dict(product.node.kwargs)), _sizes)
        alike[f"{product.node.target} {given}"].append(product)
    try:
        with outside_tracing(), torch.no_grad():
            times = [(len(products), _seconds(products[0], total)) for products in alike.values()]
    except Exception as error:
        log.info("what constant weights are worth is not known: %s", cause(error))
        return None
    return sum(n * plain for n, (plain, _) in times), sum(n * frozen for n, (_, frozen) in times)


def _sizes(node: Node) -> str:
    value = tensor_of(node)
    return "" if value is None else f"{_ints(value.shape)}:{_ints(value.stride())}"


def _seconds(product: Product, total: int) -> Seconds:
    bound = bind(product.node)
    if product.node.target not in LINEAR:
        return _seconds_of_convolution(product.node, bound)
    _, name, axis = LINEAR[product.node.target]
    weight = _like(bound[name])
    measured = figures(product.rows, weight.t() if axis == -1 else weight, total)
    return measured[0][PLAIN], measured[0][best_of(measured, product.rows)]


def _seconds_of_convolution(node: Node, bound: dict[str, Any]) -> Seconds:
    args = map_arg(node.args, _like)
    ways: list[Callable[[], torch.Tensor]] = [lambda: node.target(*args, **node.kwargs)]  # type: ignore[operator]
    if (packed := _packed(bound)) is not None:
        ways.append(packed)
    seconds = [float("inf")] * len(ways)
    for _ in range(_CALLS):
        for i, call in enumerate(ways):
            started = time.perf_counter()
            call()
            seconds[i] = min(seconds[i], time.perf_counter() - started)
    return seconds[0], min(seconds)


def _packed(bound: dict[str, Any]) -> Callable[[], torch.Tensor] | None:
    """A convolution in two dimensions as Inductor freezes it; others, None, are taken to gain nothing."""
    data, weight, padding = _like(bound["input"]), _like(bound["weight"]), bound["padding"]
    if data.dim() != 4 or isinstance(padding, str) or bound.get("transposed"):
        return None
    bias = None if bound["bias"] is None else _like(bound["bias"])
    where = padding, bound["stride"], bound["dilation"], bound["groups"]
    held = torch.ops.mkldnn._reorder_convolution_weight(weight, *where, list(data.shape))
    last = data.contiguous(memory_format=torch.channels_last)
    operator = torch.ops.mkldnn._convolution_pointwise.default
    return lambda: operator(last, held, bias, *where, "none", [], "")


def _like(node: Node) -> torch.Tensor:
    """Random numbers that lie as the value of ``node`` does."""
    value = tensor_of(node)
    assert value is not None
    empty = torch.empty_strided(_ints(value.shape), _ints(value.stride()), dtype=value.dtype)
    return empty.normal_()


def _ints(sizes: Sequence[Any]) -> list[int]:
    return [size_hint(size) for size in sizes]
