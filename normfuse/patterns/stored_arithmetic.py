"""Norms with stored statistics that are written out: a mean, a root, a scale and a shift per channel.

    FrozenBatchNorm2d:   x * s + t,                                  s = weight * rsqrt(variance + eps)
    Unified norm:        x / sqrt(variance + eps) * weight + bias    (Yang et al. 2022, eq. 2, in evaluation)

A product with a vector is a norm only if the vector comes from the root of a stored value plus eps.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import CASTS, aten, bind, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.region import Operands
from normfuse.ir.sizes import lies_alike, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.stored_growth import channel_axis, unrepeated, weight_behind
from normfuse.patterns.stored_operands import (
    added_eps,
    alike,
    entries,
    exact_root,
    kind_of,
    product_with,
    told_apart,
    under_root,
)

__all__ = ["spelled_norms"]


@dataclass(frozen=True)
class _Chain:
    """A source on its way to ``root``, by the operands that were met so far.

    ``factor`` is what it is multiplied by, or with ``divides`` what it is divided by.
    """

    root: Node
    axis: int
    operands: Operands
    eps: float
    factor: Node
    divides: bool
    compute_dtype: torch.dtype | None = None

    @property
    def reader(self) -> Node | None:
        """The only reader of the result."""
        found = readers(self.root)
        return found[0] if len(found) == 1 else None


def spelled_norms(graph: Graph, weights: Container[Node]) -> list[Candidate]:
    """Every norm of this kind that is written out in arithmetic, in execution order."""
    candidates = []
    for node in graph.nodes:
        chain = _begun(node, weights)
        if chain is not None:
            chain = _with_scale(_with_mean(chain, weights), weights)
            candidates.append(_candidate(_with_casts(_with_shift(chain, weights))))
    return candidates


def _begun(node: Node, weights: Container[Node]) -> _Chain | None:
    """``weight * [x - mean] * scale``, where the scale is made of a stored root, or ``/ root``."""
    shift, value, factor, divides = _parts(node, weights)
    axis = channel_axis(factor, node)
    if value is None or factor is None or axis is None or not _floating(value, node):
        return None
    eps = _stored_root(factor)
    if eps is None or not (shift is None or channel_axis(shift, node) == axis):
        return None
    inner, weight = _before_weight(value, axis, weights)
    root = exact_root(factor, divides)
    if root is not None and alike(root[0], factor):
        operands = changed(_less_mean(inner, axis, weights), scale=weight, variance=root[0], shift=shift)
    elif divides:
        return None
    else:
        operands = changed(_less_mean(value, axis, weights), scale=factor, shift=shift)
    return _Chain(node, axis, operands, eps, factor, divides)


def _parts(node: Node, weights: Container[Node]) -> tuple[Node | None, Node | None, Node | None, bool]:
    """What is added, what depends on the input, what belongs to the model, and whether it divides."""
    if is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return None, *_value_and_factor(node.args, weights, is_call(node, aten.div.Tensor))
    exact = tensor_of(node)
    if not is_call(node, aten.addcmul.default, aten.addcdiv.default) or exact is None:
        return None, None, None, False
    bound, divides = bind(node), is_call(node, aten.addcdiv.default)
    shift = bound["self"]
    # In half precision the product alone would be rounded.
    if bound["value"] != 1 or shift not in weights or exact.dtype not in (torch.float32, torch.float64):
        return None, None, None, False
    return shift, *_value_and_factor((bound["tensor1"], bound["tensor2"]), weights, divides)


def _value_and_factor(
    pair: Sequence[object], weights: Container[Node], divides: bool
) -> tuple[Node | None, Node | None, bool]:
    left, right = (unrepeated(value, weights) for value in pair[:2])
    if isinstance(left, Node) and left in weights and not divides:
        left, right = right, left
    if not (isinstance(left, Node) and isinstance(right, Node)) or left in weights or right not in weights:
        return None, None, divides
    return left, right, divides


def _floating(value: Node, node: Node) -> bool:
    before, after = tensor_of(value), tensor_of(node)
    keeps = before is not None and after is not None and before.dim() == after.dim()
    return keeps and before.is_floating_point()  # type: ignore[union-attr]


def _stored_root(factor: Node) -> float | None:
    """The eps below a root somewhere in what a weight value is made of."""
    seen, stack = {factor}, [factor]
    while stack:
        node = stack.pop()
        eps = added_eps(under_root(node))
        if eps is not None:
            return eps
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return None


def _before_weight(value: Node, axis: int, weights: Container[Node]) -> tuple[Node, Node | None]:
    """What a weight that comes first multiplies, and the weight; one made of a root is a norm of its own."""
    if is_call(value, aten.mul.Tensor) and len(readers(value)) == 1:
        inner, weight, _ = _value_and_factor(value.args, weights, False)
        fits = weight is not None and channel_axis(weight, value) == axis and _stored_root(weight) is None
        if inner is not None and fits and _floating(inner, value):
            return inner, weight
    return value, None


def _less_mean(value: Node, axis: int, weights: Container[Node]) -> Operands:
    if is_call(value, aten.sub.Tensor) and len(value.users) == 1 and bind(value)["alpha"] == 1:
        source, mean = value.args[:2]
        fits = isinstance(source, Node) and source not in weights and _floating(source, value)
        if fits and isinstance(mean, Node) and mean in weights and channel_axis(mean, value) == axis:
            return Operands(source, mean=mean)  # type: ignore[arg-type]
    return Operands(value)


def _with_mean(chain: _Chain, weights: Container[Node]) -> _Chain:
    """``x * s - mean * s``"""
    product = weight_behind(chain.root, aten.sub.Tensor, chain.axis, weights)
    mean = product_with(product, entries(chain.factor))
    operands = chain.operands
    if product is None or mean is None or chain.divides or chain.reader is None or operands.shift is not None:
        return chain
    is_bare = operands.mean is None and (operands.scale is None or operands.scale is chain.factor)
    if not is_bare or not alike(mean, product) or chain.reader.args[0] is not chain.root:
        return chain
    return changed(chain, root=chain.reader, operands=changed(operands, mean=mean))


def _with_scale(chain: _Chain, weights: Container[Node]) -> _Chain:
    weight = weight_behind(chain.root, aten.mul.Tensor, chain.axis, weights)
    if weight is None or chain.reader is None or chain.operands.scale or chain.operands.shift:
        return chain
    return changed(chain, root=chain.reader, operands=changed(chain.operands, scale=weight))


def _with_shift(chain: _Chain, weights: Container[Node]) -> _Chain:
    bias = weight_behind(chain.root, aten.add.Tensor, chain.axis, weights)
    if bias is None or chain.reader is None or chain.operands.shift is not None:
        return chain
    return changed(chain, root=chain.reader, operands=changed(chain.operands, shift=bias))


def _with_casts(chain: _Chain) -> _Chain:
    """The same with the cast back to half precision, and the one to a wider dtype before, if there is one."""
    source, reader = _before_widening(chain.operands.source), chain.reader
    before, inside, after = tensor_of(source), tensor_of(chain.root), tensor_of(reader)
    if before is None or inside is None or after is None or reader is None or not is_call(reader, *CASTS):
        return chain
    if inside.dtype not in WIDER.get(before.dtype, ()) or after.dtype != before.dtype:
        return chain
    operands = changed(chain.operands, source=source)
    return changed(chain, root=reader, operands=operands, compute_dtype=inside.dtype)


def _before_widening(value: Node) -> Node:
    source = value.args[0] if is_call(value, *CASTS) and len(value.all_input_nodes) == 1 else None
    before, after = tensor_of(source), tensor_of(value)
    if not isinstance(source, Node) or before is None or after is None or not lies_alike(value, source):
        return value
    return source if after.dtype in WIDER.get(before.dtype, ()) else value


def _candidate(chain: _Chain) -> Candidate:
    operands, eps = told_apart(chain.operands) or (chain.operands, chain.eps)
    source, result = tensor_of(operands.source), tensor_of(chain.root)
    assert source is not None
    assert result is not None
    stored = tuple(role for role in ("mean", "variance") if getattr(operands, role) is not None)
    spec = NormSpec(
        kind=kind_of(chain.operands, chain.factor),
        dims=tuple(d for d in range(-source.dim(), 0) if d != chain.axis),
        eps=eps,
        source_dtype=source.dtype,
        compute_dtype=chain.compute_dtype or torch.promote_types(source.dtype, result.dtype),
        scale_dtype=result.dtype,
        out_dtype=result.dtype,
        has_scale=operands.scale is not None,
        has_shift=operands.shift is not None,
        statistics="stored",
        stored=stored,
    )
    return Candidate(spec, chain.root, operands)
