"""What a norm becomes when the number that multiplies what it reads goes into its eps.

    w N_eps(c x) + b = (sgn(c) w) N_{eps / c^2}(x) + b

Its eps stays a number where ``c`` is one; a weight of one entry makes it an operand.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Graph, Node

from normfuse.analysis.channel_map import dtype_of
from normfuse.analysis.factors import Factor
from normfuse.analysis.weights import WeightValues
from normfuse.folding import Premise, Question
from normfuse.folding.precision import is_mild
from normfuse.ir.calls import aten
from normfuse.ir.canonical import is_expressible, respell
from normfuse.ir.dtypes import digits
from normfuse.ir.emit import call, cast
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import Operands, region_of
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.own_factor import refuse_form, refuse_weights, times
from normfuse.passes.place import Placement
from normfuse.passes.recipes import recipe_of, value_of
from normfuse.report import Refusal

__all__ = ["refusal_before", "refusal_of_operand", "take_before"]


def refusal_before(norm: Node, factor: Factor, program: Program, weights: WeightValues) -> Refusal | None:
    """Why a norm cannot take the factor of what it reads, if so."""
    operands = region_of(norm).operands(norm)
    refusal = _refuse_eps(norm, operands.eps, weights) or refuse_form(norm)
    refusal = refusal or _refuse_range(norm, factor, program)
    if refusal is not None or isinstance(factor.by, Node) or factor.by > 0:
        return refusal
    return refuse_weights(norm, (operands.scale or operands.shift,), program, weights)


def take_before(norm: Node, factor: Factor, placement: Placement, program: Program) -> None:
    """Put the factor of what a norm reads into its eps, and the sign into its weight or behind it."""
    spec, operands = region_of(norm).spec, region_of(norm).operands(norm)
    if isinstance(factor.by, Node):
        question = Question("factor", spec.sum_dtype, spec.eps or 0.0)
        recipe, sources = recipe_of(program, factor.by)
        program.premises.append(Premise(norm.name, question, (recipe,), (sources,)))
    elif factor.by < 0:
        spec, operands = _negated(norm, spec, operands, placement)
    respell(norm, *_with_eps(norm, factor, spec, operands, placement))


def _with_eps(
    norm: Node, factor: Factor, spec: NormSpec, operands: Operands, placement: Placement
) -> tuple[NormSpec, Operands]:
    """``eps / c**2``, or ``eps / |c|`` outside of the root; an operand where the factor is a weight."""
    power = (1 if factor.divides else -1) * (2 if spec.eps_mode == "inside" else 1)
    by, eps = factor.by, operands.eps if spec.eps is None else spec.eps
    if isinstance(by, Node):
        made = None if eps == 0 else _times_power(norm, eps, by, power, spec, placement)
        return replace(spec, eps=spec.eps if made is None else None), replace(operands, eps=made)
    ratio = abs(by) ** power
    if isinstance(eps, Node):
        return spec, replace(operands, eps=placement.times(eps, ratio, norm))
    return replace(spec, eps=None if eps is None else eps * ratio), operands


def _times_power(
    norm: Node, eps: float | Node | None, by: Node, power: int, spec: NormSpec, placement: Placement
) -> Node:
    def emit(graph: Graph) -> Node:
        entry = cast(graph, call(graph, aten.reshape.default, by, []), spec.sum_dtype)
        return call(graph, aten.mul.Tensor, call(graph, aten.pow.Tensor_Scalar, entry, power), eps)

    return placement.made_of({node for node in (by, eps) if isinstance(node, Node)}, norm, emit)


def _negated(
    norm: Node, spec: NormSpec, operands: Operands, placement: Placement
) -> tuple[NormSpec, Operands]:
    if operands.scale is not None:
        scale = placement.times(operands.scale, -1.0, norm)
        return replace(spec, weight_offset=0.0), replace(operands, scale=scale)
    return replace(spec, post_factor=-spec.post_factor), times(operands, -1.0, placement, norm)


def _refuse_eps(norm: Node, eps: Node | None, weights: WeightValues) -> Refusal | None:
    """Why an eps that is a value of the graph cannot be multiplied, if so."""
    if eps is None:
        return None
    name, held = f"the eps of {described(norm)}", dtype_of(eps)
    if eps not in weights:
        return Refusal("eps_operand", f"{name} depends on the call", norm.name)
    if digits(held) < digits(region_of(norm).spec.sum_dtype):
        message = f"{name} is a {held}, narrower than the statistics, and a multiple of it would be rounded"
        return Refusal("eps_operand", message, norm.name, "keep eps in the dtype of the statistics")
    return None


def _refuse_range(norm: Node, factor: Factor, program: Program) -> Refusal | None:
    """Why ``x`` may be squared worse than ``c x``, if so; in float16 values do meet the bounds."""
    spec, by = region_of(norm).spec, factor.by
    statistics, eps = spec.sum_dtype, spec.eps or 0.0
    is_half = dtype_of(factor.value) == torch.float16
    grows = isinstance(by, Node) or abs(by) > 1 or factor.beside is not None
    if statistics == torch.float16 or (is_half and grows):
        message = f"{described(factor.product)} keeps values within float16, or takes them out of it"
        return Refusal("narrow_values", message, norm.name, "scale in a wider dtype")
    if isinstance(by, Node) and not is_expressible(spec):
        return Refusal("unusual_form", f"the eps of {described(norm)} has to be a number", norm.name)
    if isinstance(by, Node):
        value = value_of(program, by)
        mild = Question("factor", statistics, eps).is_met([value])
        mild = mild and (norm.name, "factor") not in program.doubted
    else:
        mild = is_mild(abs(by), eps, statistics)
        mild = mild and (is_half or is_mild(abs(by), 0.0, dtype_of(factor.value)))
    if mild:
        return None
    message = f"the factor of {described(factor.product)} is zero, negative, too large or too small to fold"
    return Refusal("factor_range", message, norm.name)


def refusal_of_operand(factor: Factor, program: Program, weights: WeightValues) -> Refusal | None:
    """Why no eps can be made of what multiplies, where that is no number of the graph, if so."""
    by = factor.by
    if not isinstance(by, Node):
        return None
    name = f"{described(by)}, by which {described(factor.product)} multiplies"
    value = tensor_of(by)
    if by not in weights or value is None or not value.is_floating_point():
        refusal = weights.varies(by)
        return refusal or Refusal("computed_factor", f"{name}, depends on the call", factor.product.name)
    if program.grad_enabled and weights.records_gradients(by):
        return Refusal("trains", f"gradients are recorded for {name}", factor.product.name)
    if program.copies_tables or factor.beside is not None:
        message = f"{name}, is a tensor, and with an eps made of it the norm would be no single operator"
        return Refusal("eps_operand", message, factor.product.name, "multiply by a Python number")
    return weights.refusal(by)
