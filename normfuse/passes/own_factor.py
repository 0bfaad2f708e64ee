"""The number that multiplies what a norm gives goes into its weight and bias.

    k (w N(x) + b) = (k w) N(x) + k b

Whatever else multiplies a weight and a bias asks the same of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.as_it_is import refuse_widened
from normfuse.analysis.weights import WeightValues
from normfuse.ir.canonical import has_body, respell
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import Operands, region_of
from normfuse.passes.own_affine import refuse_operand
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range
from normfuse.report import Refusal

__all__ = ["refusal_behind", "refuse_form", "refuse_weights", "take_behind", "times"]


def refusal_behind(norm: Node, program: Program, weights: WeightValues) -> Refusal | None:
    """Why the weight and bias of a norm cannot take the number that multiplies its result, if so."""
    spec, operands = region_of(norm).spec, region_of(norm).operands(norm)
    if not spec.has_scale:
        message = f"{described(norm)} has no weight that could take the number behind it"
        return Refusal("no_weight", message, norm.name)
    held = [operand for operand in (operands.scale, operands.shift) if operand is not None]
    narrow = next((r for operand in held if (r := refuse_widened(norm, operand)) is not None), None)
    return refuse_form(norm) or narrow or refuse_weights(norm, held, program, weights)


def take_behind(norm: Node, placement: Placement, program: Program) -> Refusal | None:
    """Put the number behind a norm into its weight and bias; why their dtype cannot hold them, if so."""
    spec, operands = region_of(norm).spec, region_of(norm).operands(norm)
    operands = times(operands, spec.post_factor, placement, norm)
    made = [node for node in (operands.scale, operands.shift) if node is not None]
    refusal = rest_on_range(program, norm, made, placement)
    if refusal is not None:
        return refusal
    respell(norm, replace(spec, post_factor=1.0, weight_offset=0.0), operands)
    return None


def times(operands: Operands, number: float, placement: Placement, norm: Node) -> Operands:
    """The weight and bias times a number."""
    scale, shift = (
        None if node is None else placement.times(node, number, norm)
        for node in (operands.scale, operands.shift)
    )
    return replace(operands, scale=scale, shift=shift)


def refuse_form(norm: Node) -> Refusal | None:
    """Why a norm cannot be written anew, if so."""
    if has_body(region_of(norm).spec):
        return None
    message = f"{described(norm)} is of a form in which another eps or weight cannot be written"
    return Refusal("unusual_form", message, norm.name)


def refuse_weights(
    norm: Node, held: Iterable[Node | None], program: Program, weights: WeightValues
) -> Refusal | None:
    """Why a weight and a bias cannot be multiplied, if so."""
    for operand in held:
        if operand is None:
            continue
        refusal = refuse_operand(norm, operand, weights)
        if refusal is None and program.grad_enabled:
            message = f"gradients are recorded, and {described(operand)} may train"
            refusal = Refusal("trains", message, norm.name, "call the model under torch.no_grad()")
        if refusal is not None:
            return refusal
    return None
