"""What follows the core of a norm, its weight, its bias and the number behind them, as maps for others."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.plan import Maps
from normfuse.analysis.weights import WeightValues
from normfuse.ir.location import described
from normfuse.ir.region import Operands, region_of
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.stored_values import refusal_of_values
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["affine_axis", "affine_of", "refuse_operand", "refuse_operands"]


def affine_of(spec: NormSpec, operands: Operands) -> Maps:
    """What follows the core, innermost first."""
    times = () if spec.post_factor == 1 else (Diagonal(spec.post_factor),)
    return (Standardise(0.0, scale=operands.scale, shift=operands.shift), *times)


def affine_axis(node: Node, spec: NormSpec) -> int:
    """The axis along which the weight and bias lie."""
    (dim,) = spec.affine_dims or spec.dims
    return rank_of(node) + dim


def refuse_operands(node: Node, operands: Operands, work: Work, weights: WeightValues) -> Refusal | None:
    """Why no other weight can take the weight and bias of a norm, if so."""
    region = region_of(node)
    width = (shape_of(node) or ())[affine_axis(node, region.spec)]
    for operand in (operands.scale, operands.shift):
        if operand is None:
            continue
        refusal = refuse_operand(node, operand, weights)
        if refusal is not None:
            return refusal
        entries = [size for size in shape_of(operand) or () if size != 1]
        if entries not in ([], [width]):
            message = f"{described(operand)} has more than one number for each channel"
            return Refusal("weight_shape", message, node.name)
    return refusal_of_values(node, operands, 0.0, work.program)


def refuse_operand(node: Node, operand: Node, weights: WeightValues) -> Refusal | None:
    """Why nothing can be made of what a norm scales or shifts by, if so."""
    if operand in weights:
        return weights.refusal(operand) or weights.refusal_apart(operand, [node])
    message = f"{described(operand)}, by which {described(node)} scales or shifts, depends on the call"
    if region_of(node).spec.is_stored:
        remedy = "keep the statistics in buffers of a module"
        return weights.varies(operand) or Refusal("computed_statistics", message, node.name, remedy)
    return weights.varies(operand) or Refusal("computed_scale", message, node.name)
