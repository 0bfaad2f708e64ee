"""Note what the folding of a stored norm rests on, for the call at which the weights are others.

What was refused for its values stays refused, which is right for all values. It is asked again when a folded
weight is: where gradients are recorded, the algebra on weights that train runs at each call and nobody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from normfuse.analysis.plan import Plan, leaves_of
from normfuse.folding import Premise, Question
from normfuse.ir.program import Program
from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.passes.large_taps import refusal_of_large_taps
from normfuse.passes.place import Placement
from normfuse.passes.recipes import recipe_of
from normfuse.passes.stored_values import refusal_of_overflow
from normfuse.report import Refusal

__all__ = ["rest_on_plan", "rest_on_precision", "rest_on_range", "rest_on_small_bias", "small_shift"]


def rest_on_precision(program: Program, norm: Node, operands: Operands, eps: float) -> None:
    """What reads the norm and takes it goes on losing nothing."""
    premise = _about_moments(program, norm, "cancellation", operands, eps)
    if premise is not None:
        program.premises.append(premise)


def small_shift(program: Program, norm: Node, operands: Operands, eps: float) -> Premise | None:
    """That the shift of the norm stays small enough for any place; it counts where that matters."""
    return _about_moments(program, norm, "shift", operands, eps)


def _about_moments(
    program: Program, norm: Node, reason: str, operands: Operands, eps: float
) -> Premise | None:
    if operands.mean is None or operands.variance is None:
        return None
    return _about_operands(program, norm, Question(reason, norm.meta["val"].dtype, eps), operands)


def rest_on_small_bias(program: Program, norm: Node, operands: Operands, dtype: torch.dtype) -> None:
    """What reads the norm in this dtype, and takes its bias, goes on losing nothing."""
    if operands.shift is not None:
        program.premises.append(_about_operands(program, norm, Question("large_bias", dtype), operands))


def _about_operands(program: Program, norm: Node, asked: Question, operands: Operands) -> Premise:
    given = (operands.mean, operands.variance, operands.scale, operands.shift)
    places = tuple(i for i, node in enumerate(given) if node is not None and tensor_of(node) is not None)
    nodes = [node for i in places if (node := given[i]) is not None]
    recipes, sources = zip(*(recipe_of(program, node) for node in nodes), strict=True)
    return Premise(norm.name, replace(asked, places=places), recipes, sources)


def rest_on_range(
    program: Program, norm: Node, folded: Sequence[Node], placement: Placement
) -> Refusal | None:
    """The dtype of the weights that the norm is folded into can hold them; else they are discarded."""
    asked = [_in_range(program, norm, weight) for weight in folded]
    refusal = refusal_of_overflow(norm, asked, program)
    if refusal is None:
        program.premises.extend(asked)
    else:
        placement.discard(folded)
    return refusal


def rest_on_plan(
    program: Program, norm: Node, plan: Plan, before: Node, placement: Placement
) -> Refusal | None:
    """The weights of a plan, made ahead of ``before``, can take what it gives them."""
    refusal = refusal_of_large_taps(norm, leaves_of(plan), placement, program)
    return refusal or rest_on_range(program, norm, placement.weights(plan, before), placement)


def _in_range(program: Program, norm: Node, weight: Node) -> Premise:
    """Asked for the dtype in which the weight meets the norm's values: autocast has it cast to theirs."""
    recipe, sources = recipe_of(program, weight)
    values: torch.dtype = norm.meta["val"].dtype
    question = Question("overflow", values if values == torch.float16 else recipe.dtype)
    return Premise(norm.name, question, (recipe.in_dtype(torch.float64),), (sources,))
