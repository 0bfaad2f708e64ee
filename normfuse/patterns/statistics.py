"""Transfer functions of the operators that make statistics: squares, sums, means, variances, norms."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER, opmath
from normfuse.ir.einsum import subscripts
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.patterns.algebra import HALF, count, dtype_of, power, stays, trailing
from normfuse.patterns.facts import Fact, Facts, Stage, transfer
from normfuse.patterns.flaws import OPEN_SIZE
from normfuse.patterns.masked import CODE, masked

__all__ = ["square"]


def _reduced(fact: Fact | None, stage: Stage, dim: Any, keepdim: Any, **changes: Any) -> Fact | None:
    """A statistic of ``fact`` over ``dim``; a centred source has statistics over the same dims only."""
    shape = None if fact is None else shape_of(fact.source)
    if fact is None or shape is None or dim is None or dim == []:
        return None
    dims = trailing(dim, len(shape))
    return fact.reduced(stage, dims, missing=() if keepdim else dims, **changes)


def _summed(node: Node, facts: Facts, divisor: float | None) -> Fact | None:
    """The sum or mean of the source or of its square; what divides a masked sum is not looked at."""
    bound = bind(node)
    fact = facts.at(bound["self"], Stage.SQUARE) or masked(bound["self"], facts)
    fact = fact or _read_as(facts.at(bound["self"], Stage.SOURCE), bound["dtype"])
    if fact is None or (fact.stage is Stage.SOURCE and fact.centred):
        return None
    stage = Stage.MEAN if fact.stage is Stage.SOURCE else Stage.STATISTIC
    by = None if fact.flaw == CODE else divisor
    return stays(node, _reduced(fact, stage, bound["dim"], bound["keepdim"], divisor=by))


@transfer(aten.mean.dim)
def mean(node: Node, facts: Facts) -> Fact | None:
    return _summed(node, facts, None)


@transfer(aten.sum.dim_IntList)
def total(node: Node, facts: Facts) -> Fact | None:
    return _summed(node, facts, 1.0)


def square(node: Node, value: object, facts: Facts) -> Fact | None:
    """The square of a source, or of the root of a statistic."""
    value = _without_sign(value)
    statistic = facts.at(value, Stage.STATISTIC)
    made = stays(node, power(statistic, 2)) if statistic is not None and _is_bare(statistic) else None
    fact = facts.at(value, Stage.SOURCE)
    return made if made is not None or fact is None else stays(node, changed(fact, stage=Stage.SQUARE))


def _is_bare(statistic: Fact) -> bool:
    """Whether nothing was done to it, and its root has no sign that a square would take away."""
    signed = isinstance(statistic.eps, Node) and statistic.eps_mode == "outside"
    return statistic.factor_dtype is None and statistic.scale is None and not signed


def _without_sign(value: object) -> object:
    """The square of ``abs(x)`` is that of a real ``x``."""
    if not isinstance(value, Node) or not is_call(value, aten.abs.default):
        return value
    inner = value.args[0]
    return inner if isinstance(inner, Node) and dtype_of(inner) == dtype_of(value) else value


@transfer(aten.square.default)
def squared(node: Node, facts: Facts) -> Fact | None:
    return square(node, node.args[0], facts)


def _read_as(fact: Fact | None, dtype: torch.dtype | None) -> Fact | None:
    """A source that an operator widens before it reads it."""
    if fact is None or dtype is None or fact.compute_dtype is None:
        return fact
    widens = dtype in WIDER.get(fact.compute_dtype, ()) and not fact.centred
    return changed(fact, compute_dtype=dtype) if widens else fact


def _spread(call: Node, facts: Facts, exponent: Fraction) -> Fact | None:
    """The variance or standard deviation that an operator makes, biased or not."""
    bound = bind(call)
    correction = bound["correction"] if "correction" in bound else int(bound["unbiased"])
    fact = facts.at(bound["self"], Stage.SOURCE)
    made = _reduced(fact, Stage.STATISTIC, bound["dim"], bound["keepdim"], centred=True, exponent=exponent)
    if made is None or fact is None or isinstance(correction, Node):
        return None
    correction = 1 if correction is None else correction
    elements = count(made)
    if correction == 0:
        return _in_more_precision(made)
    if elements is None:
        return changed(made, flaw=made.flaw or OPEN_SIZE)
    if elements <= correction:
        return None
    return _in_more_precision(changed(made, divisor=float(elements - correction)))


def _in_more_precision(fact: Fact) -> Fact:
    """One operator sums squares of half precision without rounding them."""
    assert fact.compute_dtype is not None
    wider = opmath(fact.compute_dtype)
    exact = fact.flaw or wider == fact.compute_dtype
    return fact if exact else changed(fact, statistics_dtype=wider)


@transfer(aten.var.correction, aten.var.dim)
def variance(node: Node, facts: Facts) -> Fact | None:
    return stays(node, _spread(node, facts, Fraction(1)))


@transfer(aten.std.correction, aten.std.dim)
def deviation(node: Node, facts: Facts) -> Fact | None:
    return stays(node, _spread(node, facts, HALF))


_VARIANCE_AND_MEAN = (aten.var_mean.correction, aten.var_mean.dim)
_DEVIATION_AND_MEAN = (aten.std_mean.correction, aten.std_mean.dim)


@transfer(operator.getitem)
def part(node: Node, facts: Facts) -> Fact | None:
    """The parts of ``var_mean`` and ``std_mean``."""
    both, index = node.args[0], node.args[1]
    if not isinstance(both, Node) or not is_call(both, *_VARIANCE_AND_MEAN, *_DEVIATION_AND_MEAN):
        return None
    if index == 0:
        exponent = Fraction(1) if is_call(both, *_VARIANCE_AND_MEAN) else HALF
        return stays(node, _spread(both, facts, exponent))
    bound = bind(both)
    fact = facts.at(bound["self"], Stage.SOURCE)
    made = _reduced(fact, Stage.MEAN, bound["dim"], bound["keepdim"])
    return None if fact is None or fact.centred else stays(node, made)


@transfer(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype)
@transfer(aten.frobenius_norm.dim, aten.linalg_norm.default)
def length(node: Node, facts: Facts) -> Fact | None:
    """The root of the sum of squares; of two dimensions with the order 2, linalg_norm is another norm."""
    bound = bind(node)
    order = bound.get("ord", bound.get("p", 2))
    fact = _read_as(facts.at(bound["self"], Stage.SOURCE), bound.get("dtype"))
    if (order is not None and order != 2) or fact is None or dtype_of(node) != fact.compute_dtype:
        return None
    made = _reduced(fact, Stage.STATISTIC, bound["dim"], bound["keepdim"], divisor=1.0, exponent=HALF)
    if made is None or (is_call(node, aten.linalg_norm.default) and order == 2 and len(made.dims) == 2):
        return None
    return stays(node, _in_more_precision(made))


@transfer(aten.linalg_vecdot.default)
def product_with_itself(node: Node, facts: Facts) -> Fact | None:
    bound = bind(node)
    return _dot(node, facts, bound["x"], bound["y"], bound["dim"])


@transfer(aten.einsum.default)
def einsum(node: Node, facts: Facts) -> Fact | None:
    """A source contracted with itself, e.g. ``"bsd,bsd->bs"``."""
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, (list, tuple)):
        return None
    if len(operands) == 1:
        return _contracted(node, facts, equation, operands[0])
    if len(operands) != 2:
        return None
    (left, right), output = subscripts(equation, [rank_of(o) for o in operands])
    kept = [letter for letter in left if letter in output]
    if left != right or len(set(left)) != len(left) or kept != list(output):
        return None
    dims = [left.index(letter) for letter in left if letter not in output]
    return _dot(node, facts, operands[0], operands[1], dims)


def _contracted(node: Node, facts: Facts, equation: str, operand: Any) -> Fact | None:
    """A sum over axes, e.g. ``"bsd->bs"``."""
    (letters,), output = subscripts(equation, [rank_of(operand)])
    kept = [letter for letter in letters if letter in output]
    if len(set(letters)) != len(letters) or kept != list(output):
        return None
    dims = [letters.index(letter) for letter in letters if letter not in output]
    fact = facts.at(operand, Stage.SQUARE) or facts.at(operand, Stage.SOURCE)
    if fact is None or fact.flaw or not dims or (fact.stage is Stage.SOURCE and fact.centred):
        return None
    stage = Stage.MEAN if fact.stage is Stage.SOURCE else Stage.STATISTIC
    return stays(node, _reduced(fact, stage, dims, False, divisor=1.0))


def _dot(node: Node, facts: Facts, left: Any, right: Any, dim: Any) -> Fact | None:
    fact, other = facts.at(left, Stage.SOURCE), facts.at(right, Stage.SOURCE)
    if fact is None or other is None or fact != other or fact.compute_dtype == torch.int8:
        return None
    made = _reduced(fact, Stage.STATISTIC, dim, False, divisor=1.0)
    return None if made is None else stays(node, _in_more_precision(made))
