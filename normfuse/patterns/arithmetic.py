"""Transfer functions of the operators from which people write norms by hand.

    normed = y * rsqrt(mean(y**2) + eps),    y = x  or  y = x - mean(x)

Each function maps facts about the inputs to a fact about the result, or to None when the
operator leads away from a norm. Equal functions reach equal facts; statistics of another tensor,
over other dimensions or in another precision never meet.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.dtypes import WIDER
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.patterns.facts import Fact, Facts, Stage, transfer

__all__ = ["trailing"]


def trailing(dims: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the end, sorted."""
    chosen = dims if isinstance(dims, (list, tuple)) else [dims]
    return tuple(sorted(d - ndim if d >= 0 else d for d in chosen))


def _dtype(node: Node) -> torch.dtype | None:
    value = tensor_of(node)
    return None if value is None else value.dtype


def _stays(node: Node, fact: Fact | None) -> Fact | None:
    """A statistic is only a statistic as long as nothing rounds it."""
    return fact if fact is not None and _dtype(node) == fact.compute_dtype else None


@transfer(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default)
@transfer(aten.type_as.default)
def cast(node: Node, facts: Facts) -> Fact | None:
    """A widening cast of a source is the same source, computed in more precision."""
    fact = facts.at(node.args[0], Stage.SOURCE)
    dtype = _dtype(node)
    if fact is None or dtype is None or fact.compute_dtype is None:
        return None
    if fact.centred:
        return fact if dtype == fact.compute_dtype else None
    widens = dtype in WIDER.get(fact.compute_dtype, ()) or dtype == fact.compute_dtype
    return replace(fact, compute_dtype=dtype) if widens else None


@transfer(aten.mean.dim)
def mean(node: Node, facts: Facts) -> Fact | None:
    bound = bind(node)
    fact = facts.at(bound["self"], Stage.SOURCE, Stage.SQUARE)
    shape = shape_of(bound["self"])
    if fact is None or shape is None or not bound["dim"] or not bound["keepdim"]:
        return None
    dims = trailing(bound["dim"], len(shape))
    if fact.stage is Stage.SOURCE:
        made = replace(fact, stage=Stage.MEAN, dims=dims) if not fact.centred else None
    else:
        agrees = not fact.centred or dims == fact.dims
        made = replace(fact, stage=Stage.MEAN_SQUARE, dims=dims) if agrees else None
    return _stays(node, made)


@transfer(aten.var.correction, aten.var.dim)
def variance(node: Node, facts: Facts) -> Fact | None:
    """The biased variance is the mean square of the centred source."""
    bound = bind(node)
    biased = bound["correction"] == 0 if "correction" in bound else bound["unbiased"] is False
    fact = facts.at(bound["self"], Stage.SOURCE)
    shape = shape_of(bound["self"])
    if fact is None or fact.centred or shape is None or not (biased and bound["dim"] and bound["keepdim"]):
        return None
    dims = trailing(bound["dim"], len(shape))
    return _stays(node, replace(fact, stage=Stage.MEAN_SQUARE, centred=True, dims=dims))


@transfer(operator.getitem)
def variance_and_mean(node: Node, facts: Facts) -> Fact | None:
    """The parts of ``var_mean``: the biased variance, and the mean."""
    both, part = node.args[0], node.args[1]
    if not is_call(both, aten.var_mean.correction, aten.var_mean.dim) or not isinstance(both, Node):
        return None
    bound = bind(both)
    fact, shape = facts.at(bound["self"], Stage.SOURCE), shape_of(bound["self"])
    if fact is None or fact.centred or shape is None or not (bound["dim"] and bound["keepdim"]):
        return None
    dims = trailing(bound["dim"], len(shape))
    if part == 1:
        return _stays(node, replace(fact, stage=Stage.MEAN, dims=dims))
    biased = bound["correction"] == 0 if "correction" in bound else bound["unbiased"] is False
    made = replace(fact, stage=Stage.MEAN_SQUARE, centred=True, dims=dims)
    return _stays(node, made) if biased else None


@transfer(aten.pow.Tensor_Scalar)
def power(node: Node, facts: Facts) -> Fact | None:
    base, exponent = node.args[0], node.args[1]
    if exponent == 2:
        return square(node, facts)
    if exponent == 0.5:
        return root(node, facts)
    if exponent == -0.5:
        return inverse_root(node, facts)
    return inverse(node, facts) if exponent == -1 and base is not None else None


@transfer(aten.square.default)
def square(node: Node, facts: Facts) -> Fact | None:
    fact = facts.at(node.args[0], Stage.SOURCE)
    return None if fact is None else _stays(node, replace(fact, stage=Stage.SQUARE))


@transfer(aten.sqrt.default)
def root(node: Node, facts: Facts) -> Fact | None:
    fact = facts.at(node.args[0], Stage.PLUS_EPS)
    return None if fact is None else _stays(node, replace(fact, stage=Stage.STD))


@transfer(aten.rsqrt.default)
def inverse_root(node: Node, facts: Facts) -> Fact | None:
    fact = facts.at(node.args[0], Stage.PLUS_EPS)
    return None if fact is None else _stays(node, replace(fact, stage=Stage.RSTD))


@transfer(aten.reciprocal.default)
def inverse(node: Node, facts: Facts) -> Fact | None:
    fact = facts.at(node.args[0], Stage.STD)
    return None if fact is None else _stays(node, replace(fact, stage=Stage.RSTD))


def _eps_operand(value: object) -> float | Node | None:
    """A number, or a graph value that is one (module floats under dynamic shapes)."""
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Node) and isinstance(value.meta.get("val"), (float, torch.SymFloat)):
        return value
    return None


@transfer(aten.add.Tensor, aten.add.Scalar)
def plus_eps(node: Node, facts: Facts) -> Fact | None:
    if bind(node)["alpha"] != 1:
        return None
    for statistic, addend in (node.args[:2], node.args[1::-1]):
        fact = facts.at(statistic, Stage.MEAN_SQUARE)
        eps = _eps_operand(addend)
        if fact is not None and eps is not None:
            return _stays(node, replace(fact, stage=Stage.PLUS_EPS, eps=eps))
    return None


@transfer(aten.sub.Tensor)
def centre(node: Node, facts: Facts) -> Fact | None:
    bound = bind(node)
    left, right = facts.at(bound["self"], Stage.SOURCE), facts.at(bound["other"], Stage.MEAN)
    if left is None or right is None or left.centred or bound["alpha"] != 1:
        return None
    if left.source is not right.source or left.compute_dtype != right.compute_dtype:
        return None
    return _stays(node, replace(left, centred=True, dims=right.dims))


def _normed(node: Node, subject: Fact | None, statistic: Fact | None) -> Fact | None:
    """``subject`` over the root of its own mean square, at full precision."""
    if subject is None or statistic is None or subject.subject != statistic.subject:
        return None
    if subject.centred and subject.dims != statistic.dims:
        return None
    reads_raw = not subject.centred and subject.compute_dtype != statistic.compute_dtype
    if reads_raw and statistic.compute_dtype not in WIDER.get(subject.compute_dtype or torch.int8, ()):
        return None
    if subject.centred and subject.compute_dtype != statistic.compute_dtype:
        return None
    shape, full = shape_of(node), shape_of(statistic.source)
    if shape is None or full is None or len(shape) != len(full):
        return None
    keeps_shape = all(same(a, b) for a, b in zip(shape, full, strict=True))
    return _stays(node, replace(statistic, stage=Stage.NORMED)) if keeps_shape else None


@transfer(aten.mul.Tensor)
def multiply(node: Node, facts: Facts) -> Fact | None:
    left, right = node.args[0], node.args[1]
    if left is right:
        return square(node, facts)
    if right == 1 or left == 1:
        return _stays(node, facts.at(left if right == 1 else right, Stage.STD, Stage.RSTD))
    for subject, statistic in ((left, right), (right, left)):
        fact = _normed(node, facts.at(subject, Stage.SOURCE), facts.at(statistic, Stage.RSTD))
        if fact is not None:
            return fact
    return None


@transfer(aten.div.Tensor)
def divide(node: Node, facts: Facts) -> Fact | None:
    numerator, denominator = node.args[0], node.args[1]
    if numerator in (1, 1.0):
        fact = facts.at(denominator, Stage.STD)
        return None if fact is None else _stays(node, replace(fact, stage=Stage.RSTD))
    return _normed(node, facts.at(numerator, Stage.SOURCE), facts.at(denominator, Stage.STD))
