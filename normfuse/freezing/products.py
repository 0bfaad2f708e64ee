"""Which products of a graph read weights, which is what freezing makes faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind
from normfuse.ir.effects import aliased_by
from normfuse.ir.sizes import tensor_of
from normfuse.torch_compat import size_hint

__all__ = ["LINEAR", "Product", "products"]

#: Products with a matrix: the data, the weight, and which axis of the weight is summed over.
LINEAR = {
    aten.linear.default: ("input", "weight", -1),
    aten.addmm.default: ("mat1", "mat2", 0),
    aten.mm.default: ("self", "mat2", 0),
    aten.matmul.default: ("self", "other", -2),
}
_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A product of data with a weight that is a constant.

    ``node`` multiplies, ``weight`` is the input that holds the weight, and ``rows`` the number of rows of
    data, as the graph was traced. Of a convolution, each place of the window is a row.
    """

    node: Node
    weight: Node
    rows: int
    bytes: int


def products(graph: Graph, constants: Iterable[Node]) -> list[Product]:
    """The products of ``graph`` that read one of the inputs ``constants`` as it is, or a view of it."""
    known = {node: node for node in constants}
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        viewed = aliased_by(node)
        if len(viewed) == 1 and viewed[0] in known and node not in known:
            known[node] = known[viewed[0]]
        found += [one for one in _product(node) if one.weight in known and one.rows > 0]
    return [replace(one, weight=known[one.weight]) for one in found]


def _product(node: Node) -> Iterator[Product]:
    if node.target in LINEAR:
        data, weight, axis = LINEAR[node.target]
        bound = bind(node)
        value, held = tensor_of(bound[data]), tensor_of(bound[weight])
        if value is not None and held is not None and held.dim() == 2:
            rows = _entries(value) // max(size_hint(held.shape[axis]), 1)
            yield Product(node, bound[weight], rows, _memory_of(held))
    elif node.target in _CONVOLUTIONS:
        bound, made = bind(node), tensor_of(node)
        held = tensor_of(bound["weight"])
        if made is not None and held is not None:
            rows = _entries(made) // max(size_hint(held.shape[0]), 1)
            yield Product(node, bound["weight"], rows, _memory_of(held))


def _entries(value: torch.Tensor) -> int:
    return math.prod(map(size_hint, value.shape))


def _memory_of(value: torch.Tensor) -> int:
    """Bytes of the entries of a tensor, also of a fake one."""
    return _entries(value) * value.element_size()
