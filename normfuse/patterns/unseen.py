"""Norms that got as far as a statistic and are no norm that can be described.

    x * f(statistic(x)),    where a root is taken and the statistic divides

They are recorded, so that nobody has to wonder, and so that their neighbours can name what stands in
their way. A product with the statistic of something else is none, nor is one that multiplies by the root.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, is_call
from normfuse.ir.moves import is_move
from normfuse.ir.region import Operands
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.candidate import Candidate, is_tensor
from normfuse.patterns.evo import evo_norm
from normfuse.patterns.facts import Fact, Facts, Stage
from normfuse.patterns.flaws import OPEN_SIZE
from normfuse.patterns.operands import is_stored
from normfuse.report import Refusal

__all__ = ["unseen_norms"]

_INVERTING = (aten.rsqrt.default, aten.reciprocal.default)
_KEEPING = (
    *CASTS, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.div.Scalar, aten.sqrt.default, aten.square.default, aten.clamp.default,
    aten.clamp_min.default, aten.maximum.default, aten.max.other, aten.relu.default, aten.abs.default,
    aten.neg.default, aten.expand.default, aten.expand_as.default, aten.repeat.default,
    aten.repeat_interleave.self_int, aten.addcmul.default, aten.where.self, aten.cumsum.default,
    aten.pow.Tensor_Scalar,
)  # fmt: skip
_ELEMENTWISE = (
    *_KEEPING, aten.sigmoid.default, aten.silu.default, aten.gelu.default, aten.tanh.default,
    aten.addcmul.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor,
)  # fmt: skip
_MOST = 50
KIND = "unknown_norm"


@dataclass(frozen=True)
class _Step:
    """A value made of a statistic; ``divides`` is whether it shrinks as the statistic grows."""

    node: Node
    rooted: bool
    divides: bool


def unseen_norms(facts: Facts, known: Container[Node], weights: Container[Node]) -> list[Candidate]:
    """One refused candidate for each such product, in execution order; ``known`` are the parts of norms."""
    found: dict[Node, Candidate] = {}
    walked: set[Node] = set()
    for node, fact in facts.ending(Stage.STATISTIC):
        if node in known or node in walked or fact.source in weights or fact.flaw not in ("", OPEN_SIZE):
            continue
        for product, other, root in _products(node, fact, known, walked, weights):
            evo = evo_norm(product, other, root, weights)
            found.setdefault(product, _refused(product, other, fact, facts, evo))
    return list(found.values())


def _products(
    node: Node, fact: Fact, known: Container[Node], walked: set[Node], weights: Container[Node]
) -> Iterator[tuple[Node, Node, Node]]:
    """Where the statistic divides something that was made of its own source, element by element.

    With what it divides, and what the statistic has become there.
    """
    stack = [_Step(node, abs(fact.exponent) < 1, fact.exponent < 0)]
    while stack:
        step = stack.pop()
        walked.add(step.node)
        for user in step.node.users:
            if user in known or user in walked:
                continue
            other = _divided(step, user, fact)
            if other is not None:
                yield user, other, step.node
            elif (after := _after(step, user, fact, weights)) is not None:
                stack.append(after)


def _divided(step: _Step, user: Node, fact: Fact) -> Node | None:
    """What the statistic divides here, where that is made of its source."""
    if not step.rooted:
        return None
    if is_call(user, aten.mul.Tensor, aten.addcmul.default) and step.divides:
        others = user.args[-2:]
    elif is_call(user, aten.div.Tensor) and not step.divides and user.args[1] is step.node:
        others = user.args[:1]
    else:
        return None
    made = (n for n in others if isinstance(n, Node) and n is not step.node and _is_made_of(n, fact.source))
    return next(made, None)


def _is_made_of(value: Node, source: Node) -> bool:
    """Whether elementwise operators made a value of the source, or of what it was cast or split from."""
    whole = source
    while is_move(whole) and isinstance(whole.args[0], Node):
        whole = whole.args[0]
    stack, seen = [value], {value}
    while stack and len(seen) < _MOST:
        node = stack.pop()
        if node in (source, whole):
            return True
        inner = node.all_input_nodes if is_call(node, *_ELEMENTWISE) or is_move(node) else []
        fresh = [n for n in inner if n not in seen and (_alike(n, source) or _alike(n, whole))]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _alike(value: Node, source: Node) -> bool:
    shape, full = shape_of(value), shape_of(source)
    if shape is None or full is None or len(shape) != len(full):
        return False
    return all(same(a, b) for a, b in zip(shape, full, strict=True))


def _after(step: _Step, user: Node, fact: Fact, weights: Container[Node]) -> _Step | None:
    """The statistic after one more operator; None where it is no longer one."""
    if not (is_call(user, *_KEEPING, *_INVERTING) or is_move(user)) or tensor_of(user) is None:
        return None
    others = [n for n in user.all_input_nodes if n is not step.node and is_tensor(n)]
    known = (n in weights or is_stored(n) or _is_made_of(n, fact.source) for n in others)
    if _alike(user, fact.source) and not all(known):
        return None
    exponent = user.args[1] if is_call(user, aten.pow.Tensor_Scalar) else 1
    if not isinstance(exponent, (int, float)):
        return None
    inverts = is_call(user, *_INVERTING) or exponent < 0
    inverts = inverts or (is_call(user, aten.div.Tensor) and user.args[1] is step.node)
    rooted = is_call(user, aten.sqrt.default, aten.rsqrt.default) or abs(exponent) == 0.5
    return _Step(user, step.rooted or rooted, step.divides != inverts)


def _refused(product: Node, other: Node, fact: Fact, facts: Facts, evo: Refusal | None) -> Candidate:
    source, result = tensor_of(fact.source), tensor_of(product)
    assert source is not None
    assert result is not None
    compute = fact.compute_dtype or result.dtype
    kind = KIND if evo is None else "evo_norm"
    spec = NormSpec(kind, fact.dims, None, source.dtype, compute, result.dtype, result.dtype)
    divided = facts.at(other, Stage.SOURCE)
    is_centred = divided is not None and divided.source is fact.source and divided.centred
    sentence = _sentence(is_centred, fact.centred)
    reason = evo or Refusal("unknown_form", sentence, product.name, _REMEDY)
    return Candidate(spec, product, Operands(fact.source), closed=True, refusal=reason)


def _sentence(divided: bool, statistic: bool) -> str:
    if statistic and not divided:
        return (
            "the values are divided by their standard deviation, but what is removed from them, if anything, "
            "is not exactly their mean"
        )
    if divided and not statistic:
        return (
            "the mean is removed from the values, but what they are divided by is not exactly their "
            "standard deviation"
        )
    return "the values are divided by a statistic of their own, in a form that no known norm has"


_REMEDY = "where it is one, write it with torch.nn.functional.layer_norm or rms_norm"
