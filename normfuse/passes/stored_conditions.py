"""What has to hold of a norm with stored statistics, so that weights can do what it does."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.weights import WeightValues, divided_refusal
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import region_of
from normfuse.ir.sizes import is_row_major, lies_alike, tensor_of
from normfuse.passes.own_affine import refuse_operand
from normfuse.passes.stored_values import refusal_of_values, watch_statistics
from normfuse.patterns.around import order_is_free
from normfuse.report import Refusal

__all__ = ["keeps_its_order", "refuse_stored"]


def refuse_stored(node: Node, weights: WeightValues, program: Program) -> Refusal | None:
    """Why nothing else can do what a norm with stored statistics does, whatever stands beside it, if so."""
    region = region_of(node)
    spec, operands = region.spec, region.operands(node)
    for operand in (*operands.named()[1:], *operands.held):
        refusal = refuse_operand(node, operand, weights)
        if refusal is not None:
            return refusal
    if spec.source_dtype != spec.out_dtype:
        message = f"{described(node)} takes {spec.source_dtype} and gives {spec.out_dtype}"
        return Refusal("dtype_changes", message, node.name)
    if keeps_its_order(node) and not (lies_alike(node, operands.source) or order_is_free(node)):
        return Refusal("layout", f"{described(node)} changes how its result lies in memory", node.name)
    refusal = watch_statistics(node, operands, program)
    refusal = refusal or refusal_of_values(node, operands, spec.eps or 0.0, program)
    return divided_refusal(node) if refusal is None and weights.divided else refusal


def keeps_its_order(node: Node) -> bool:
    """Whether a norm's result lies in another order than row after row, which nothing brings about."""
    result = tensor_of(node)
    return result is None or not is_row_major(result)
