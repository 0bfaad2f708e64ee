"""A norm whose factor is multiplied behind the products that read it: the normalized values are not written.

    W (x * r) + b = r * (W x) + b,   r = 1 / sqrt(mean(x ** 2) + eps) for each row

(Graef, Wasielewski and Clapp, FlashNorm, arXiv 2407.09577, section 1), where the weight of the norm is in W
by then. Here as operators; :mod:`normfuse.lowering.product` has the same in one kernel.

The product is rounded before it is scaled, and x is not rounded to the norm's dtype. With u the relative
error of one rounding, the error of the result was at least u and is at most root 2 times u, so the ratio of
the errors is below 1.42. float16 would overflow: W x may have any size, and only its product with r is known
to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import call, cast
from normfuse.ir.region import NormRegion
from normfuse.ir.spec import NormSpec
from normfuse.lowering.provider import Provider, Replaced, alike
from normfuse.lowering.readers import Product, products_behind, replayed
from normfuse.lowering.tensors import SMALLEST, Tensors

__all__ = ["DEFERRED", "refusal_of_products", "rewritten"]


def refusal_of_products(spec: NormSpec, tensors: Tensors) -> str:
    """Why the factor of a norm cannot be multiplied behind its readers, whatever multiplies it."""
    if spec.kind not in ("rms_norm", "crms_norm") or spec.statistics != "input" or spec.returns != "value":
        return f"a {spec.kind} of this form is no factor for each row"
    if spec.dims != (-1,) or spec.groups != 1 or spec.post_factor != 1:
        return f"the rows of {tensors.name} have no factor each"
    if spec.has_scale or spec.has_shift:
        return f"the weight or bias of {tensors.name} stands between it and what reads it"
    if spec.eps is None or not spec.eps >= SMALLEST or spec.eps_mode != "inside":
        return f"no factor takes the eps of {tensors.name}"
    if tensors.other_reader or not tensors.matrices:
        reader = tensors.other_reader or "nothing"
        return f"{reader} reads {tensors.name}, and that is no product with a matrix"
    if tensors.source is None or tensors.result is None or tensors.source.dtype != tensors.result.dtype:
        return f"{tensors.name} changes the dtype of its input"
    if any(matrix.dtype != tensors.source.dtype for matrix, _, _ in tensors.matrices):
        return f"a matrix that reads {tensors.name} has another dtype"
    return ""


def _refusal_of_operators(spec: NormSpec, tensors: Tensors, device: torch.device) -> str:
    refusal = refusal_of_products(spec, tensors)
    if not refusal and tensors.source is not None and tensors.source.dtype == torch.float16:
        return "float16 may not hold a product that is scaled afterwards"
    return refusal


def _write_operators(gm: GraphModule, node: Node, region: NormRegion) -> Replaced:
    graph, source = gm.graph, region.operands(node).source
    before = set(graph.nodes)
    with graph.inserting_before(node):
        factor = _factor(graph, region.spec, source)
    alike(graph, before, node)

    def scaled(product: Product, rows: Node) -> Node:
        target: Any = aten.mm.default if is_call(product.node, aten.addmm.default) else product.node.target
        made = call(graph, target, rows, product.weight)
        made = call(graph, aten.mul.Tensor, made, replayed(product.path, factor))
        if product.bias is not None:
            made = call(graph, aten.add.Tensor, made, product.bias)
        return cast(graph, made, product.node.meta["val"].dtype)

    return rewritten(node, source, scaled)


def _factor(graph: Graph, spec: NormSpec, source: Node) -> Node:
    """``1 / sqrt(mean(x ** 2) + eps)`` of each row, in float32 at least."""
    wide = cast(graph, source, opmath(source.meta["val"].dtype))
    square = call(graph, aten.mul.Tensor, wide, wide)
    if spec.kind == "crms_norm" and spec.basis == "drop_last":
        total = call(graph, aten.sum.dim_IntList, wide, [-1], True)
        square = call(graph, aten.sum.dim_IntList, square, [-1], True)
        square = call(graph, aten.add.Tensor, square, call(graph, aten.mul.Tensor, total, total))
        mean = call(graph, aten.div.Tensor, square, spec.divisor or wide.meta["val"].shape[-1] + 1)
    elif spec.divisor is not None:
        square = call(graph, aten.sum.dim_IntList, square, [-1], True)
        mean = call(graph, aten.div.Tensor, square, spec.divisor)
    else:
        mean = call(graph, aten.mean.dim, square, [-1], True)
    return call(graph, aten.rsqrt.default, call(graph, aten.add.Tensor, mean, spec.eps))


def rewritten(node: Node, source: Node, write: Callable[[Product, Node], Node]) -> Replaced:
    """Have every product read the source of a norm, and what leads from the norm to it go."""
    graph, products = node.graph, products_behind(node)[0]
    replaced = dict[Node, Node]()
    for product in products:
        before = set(graph.nodes)
        with graph.inserting_before(product.node):
            replaced[product.node] = write(product, replayed(product.path, source))
        alike(graph, before, product.node)
        product.node.replace_all_uses_with(replaced[product.node])
        graph.erase_node(product.node)
    for step in sorted({node, *(step for one in products for step in one.path)}, reverse=True):
        graph.erase_node(step)
    return replaced


DEFERRED = Provider("deferred", "deferred", _refusal_of_operators, _write_operators)
