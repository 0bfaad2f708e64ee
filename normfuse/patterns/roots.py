"""Transfer functions between a statistic and the factor of a norm: eps, roots, bounds, shapes, rounding."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import FLOATS, WIDER
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.patterns.algebra import HALF, clamped, dtype_of, number, plus, power, stays
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.statistics import square

__all__ = ["plus_eps"]


@transfer(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default)
@transfer(aten.type_as.default)
def cast(node: Node, facts: Facts) -> Fact | None:
    """A widening cast of a source is the same source; a narrowing one of a statistic rounds it."""
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if before is None or after is None or before.device != after.device:
        return None
    fact = facts.at(node.args[0], Stage.SOURCE, Stage.STATISTIC)
    if fact is None or fact.compute_dtype is None or fact.flaw:
        return None
    if after.dtype == before.dtype:
        return fact
    if fact.stage is Stage.STATISTIC:
        rounds = before.dtype in WIDER.get(after.dtype, ()) and fact.factor_dtype is None
        return changed(fact, factor_dtype=after.dtype) if rounds and fact.exponent in (HALF, -HALF) else None
    widens = after.dtype in WIDER.get(fact.compute_dtype, ()) and not fact.centred
    return changed(fact, compute_dtype=after.dtype) if widens else None


@transfer(aten.pow.Tensor_Scalar)
def power_of(node: Node, facts: Facts) -> Fact | None:
    exponent = node.args[1]
    if exponent == 2:
        return square(node, node.args[0], facts)
    return _raised(node, facts, exponent) if isinstance(exponent, (int, float)) else None


@transfer(aten.sqrt.default)
def root(node: Node, facts: Facts) -> Fact | None:
    return _raised(node, facts, HALF)


@transfer(aten.rsqrt.default)
def inverse_root(node: Node, facts: Facts) -> Fact | None:
    return _raised(node, facts, -HALF)


@transfer(aten.reciprocal.default)
def inverse(node: Node, facts: Facts) -> Fact | None:
    return _raised(node, facts, -1)


def _raised(node: Node, facts: Facts, exponent: float | Fraction) -> Fact | None:
    fact = facts.at(node.args[0], Stage.STATISTIC)
    if fact is None or fact.factor_dtype is not None or fact.scale is not None:
        return None
    return stays(node, power(fact, exponent))


def _eps_operand(value: object) -> float | Node | None:
    """A number, or a graph value that is one (module floats under dynamic shapes)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if value >= 0 else None
    if not isinstance(value, Node):
        return None
    found = value.meta.get("val")
    if isinstance(found, (float, torch.SymFloat)):
        return value
    return value if isinstance(found, torch.Tensor) and found.dim() == 0 and found.dtype in FLOATS else None


def plus_eps(node: Node, statistic: object, addend: object, facts: Facts) -> Fact | None:
    """A statistic plus eps."""
    fact, eps = facts.at(statistic, Stage.STATISTIC), _eps_operand(addend)
    if fact is None or eps is None or fact.scale is not None or fact.factor_dtype is not None:
        return None
    return stays(node, plus(fact, eps))


@transfer(aten.clamp_min.default, aten.clamp.default)
def at_least(node: Node, facts: Facts) -> Fact | None:
    bound = bind(node)
    fact, least = facts.at(bound["self"], Stage.STATISTIC), bound["min"]
    if fact is None or least is None or bound.get("max") is not None or fact.scale is not None:
        return None
    if _is_never_positive(least):
        return stays(node, fact) if _is_never_negative(fact) else None
    bound_below = _eps_operand(least) if isinstance(least, Node) else number(least)
    if bound_below is None or fact.factor_dtype is not None:
        return None
    return stays(node, clamped(fact, bound_below))


@transfer(aten.relu.default, aten.abs.default)
def never_negative(node: Node, facts: Facts) -> Fact | None:
    """A statistic is not negative, whatever the rounding of a variance by moments makes of it."""
    fact = facts.at(node.args[0], Stage.STATISTIC)
    return stays(node, fact) if fact is not None and _is_never_negative(fact) else None


@transfer(aten.maximum.default, aten.max.other)
def larger(node: Node, facts: Facts) -> Fact | None:
    for value, other in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        fact = facts.at(value, Stage.STATISTIC)
        if fact is not None and _is_never_negative(fact) and is_call(other, *_ZEROS):
            return stays(node, fact)
    return None


_ZEROS = (aten.zeros_like.default, aten.new_zeros.default, aten.zeros.default)


def _is_never_negative(fact: Fact) -> bool:
    """Whether a statistic is at least zero: with an eps of the graph nobody knows."""
    known = not isinstance(fact.eps, Node) and fact.eps >= 0
    return known and fact.factor > 0 and fact.scale is None


def _is_never_positive(least: object) -> bool:
    return isinstance(least, (int, float)) and least <= 0


_SHAPED = (Stage.STATISTIC, Stage.MEAN)


@transfer(aten.expand.default, aten.expand_as.default)
def repeated(node: Node, facts: Facts) -> Fact | None:
    """A statistic repeated over the elements that share it."""
    fact, shape, before = facts.at(node.args[0], *_SHAPED), shape_of(node), shape_of(node.args[0])
    if fact is None or shape is None or before is None or len(shape) != len(before) or fact.missing:
        return None
    return fact


@transfer(aten.unsqueeze.default)
def restored(node: Node, facts: Facts) -> Fact | None:
    """A statistic whose reduced dimension comes back."""
    bound = bind(node)
    fact = facts.at(bound["self"], *_SHAPED)
    full = None if fact is None else shape_of(fact.source)
    if fact is None or full is None or not fact.missing:
        return None
    kept = [d for d in range(-len(full), 0) if d not in fact.missing]
    at = bound["dim"] + (len(kept) + 1 if bound["dim"] < 0 else 0)
    low = kept[at - 1] if at > 0 else -len(full) - 1
    high = kept[at] if at < len(kept) else 0
    between = [d for d in fact.missing if low < d < high]
    if not between:
        return None
    return changed(fact, missing=tuple(d for d in fact.missing if d != between[0]))


@transfer(aten.view.default, aten.reshape.default)
def reshaped(node: Node, facts: Facts) -> Fact | None:
    """A statistic in the shape that ``keepdim`` would have given it."""
    fact, shape = facts.at(node.args[0], *_SHAPED), shape_of(node)
    full = None if fact is None else shape_of(fact.source)
    if fact is None or full is None or shape is None or len(shape) != len(full):
        return None
    wanted = [1 if d in fact.dims else full[d] for d in range(-len(full), 0)]
    fits = all(same(a, b) for a, b in zip(shape, wanted, strict=True))
    return changed(fact, missing=()) if fits and dtype_of(node) is not None else None
