"""A norm as a part of the products that read it: one kernel, which finds the factor of a row in its own loop.

It sums squares and products in float32 and rounds once, so it is at least as exact as what it replaces.
Where the norm reads a sum, the first product can add it, and stores it for all other readers.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from normfuse.ir.region import NormRegion
from normfuse.ir.sizes import is_row_major, same
from normfuse.ir.spec import NormSpec
from normfuse.kernels.arguments import DTYPES
from normfuse.kernels.device import runs_kernels
from normfuse.lowering.deferred import refusal_of_products, rewritten
from normfuse.lowering.provider import Provider, Replaced, alike, part
from normfuse.lowering.readers import Product, products_behind
from normfuse.lowering.tensors import Tensors, addends, without_kernels
from normfuse.torch_compat import plain_size

__all__ = ["ADD_PRODUCT", "PRODUCT"]

#: Every tile of a product adds its rows anew, which is next to nothing while the weights take the time.
_MOST_ROWS = 512


def _refusal(spec: NormSpec, tensors: Tensors, device: torch.device) -> str:
    refusal = refusal_of_products(spec, tensors)
    if refusal or tensors.source is None:
        return refusal
    if not runs_kernels(device):
        return f"{tensors.name} {without_kernels(device)}"
    if spec.kind != "rms_norm" or spec.divisor is not None or tensors.source.dtype not in DTYPES:
        return f"no kernel multiplies behind a {spec.kind} of this form"
    if not all(is_linear and is_row_major(matrix) for matrix, is_linear, _ in tensors.matrices):
        return f"a matrix that reads {tensors.name} is not stored output by output"
    if not all(_has_number_each(matrix, bias) for matrix, _, bias in tensors.matrices):
        return f"what is added behind {tensors.name} is not one number for each output"
    return ""


def _has_number_each(matrix: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return bias is None or (bias.dim() == 1 and same(bias.shape[0], matrix.shape[0]))


def _refusal_with_sum(spec: NormSpec, tensors: Tensors, device: torch.device) -> str:
    refusal = _refusal(spec, tensors, device)
    if refusal or tensors.source is None:
        return refusal
    if not tensors.adds_in_product:
        return f"{tensors.name} reads no sum that a product can add"
    sizes = [plain_size(size) for size in tensors.source.shape]
    if not all(isinstance(size, int) for size in sizes) or math.prod(sizes[:-1]) > _MOST_ROWS:
        return f"{tensors.name} may have more than {_MOST_ROWS} rows, which every tile of a product would add"
    return ""


def _write(gm: GraphModule, node: Node, region: NormRegion) -> Replaced:
    return _multiplied(node, region, region.operands(node).source)


def _multiplied(node: Node, region: NormRegion, source: Node) -> Replaced:
    def multiply(product: Product, rows: Node) -> Node:
        return part(node.graph, _made(product, rows, None, region.spec), 0)

    return rewritten(node, source, multiply)


def _write_with_sum(gm: GraphModule, node: Node, region: NormRegion) -> Replaced:
    graph, operands = gm.graph, region.operands(node)
    pair, total, first = addends(operands), operands.source, min(products_behind(node)[0])
    assert pair is not None
    before = set(graph.nodes)
    with graph.inserting_before(total.next):  # ahead of the first reader of the sum
        made = _made(first, *pair, region.spec)
        y, h = part(graph, made, 0), part(graph, made, 1)
    alike(graph, before, first.node)
    for old, new in ((first.node, y), (total, h)):
        old.replace_all_uses_with(new)
        graph.erase_node(old)
    return {first.node: y, total: h, **_multiplied(node, region, h)}


def _made(product: Product, x: Node, residual: Node | None, spec: NormSpec) -> Node:
    from normfuse.kernels.linear_operator import linear

    given = (x, product.weight, product.bias, residual, spec.eps)
    made = x.graph.call_function(linear._opoverload, given)
    value, rows = product.node.meta["val"], x.meta["val"]
    factors = rows.new_empty((rows.numel() // rows.shape[-1], 1), dtype=torch.float32)
    made.meta["val"] = value, rows.new_empty(0) if residual is None else rows, factors
    return made


PRODUCT = Provider("linear_rms_norm", "linear_rms_norm", _refusal, _write)
ADD_PRODUCT = Provider("linear_rms_norm with the sum", "linear_rms_norm", _refusal_with_sum, _write_with_sum)
