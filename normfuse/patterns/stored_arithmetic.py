"""Norms with stored statistics that are written out: a mean, a root, a scale and a shift per channel.

    FrozenBatchNorm2d:   x * s + t,                                  s = weight * rsqrt(variance + eps)
    Unified norm:        x / sqrt(variance + eps) * weight + bias    (Yang et al. 2022, eq. 2, in evaluation)

A product with a vector is a norm only if the vector comes from the root of a stored value plus eps.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from normfuse.ir.calls import CASTS, aten, bind, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.region import Operands
from normfuse.ir.sizes import lies_alike, same, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.stored_operands import added_eps, exact_root, told_apart, under_root

__all__ = ["spelled_norms"]


@dataclass(frozen=True)
class _Chain:
    """A source on its way to ``root``, by the operands that were met so far."""

    root: Node
    axis: int
    operands: Operands
    eps: float
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
            candidates.append(_candidate(_with_casts(_with_shift(_with_scale(chain, weights), weights))))
    return candidates


def _begun(node: Node, weights: Container[Node]) -> _Chain | None:
    """``[x - mean] * scale``, where the scale is made of a stored root, or ``/ root``."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor):
        return None
    value, factor = _value_and_factor(node, weights)
    axis = _channel_axis(factor, node)
    if value is None or factor is None or axis is None or not _floating(value, node):
        return None
    found = _stored_root(factor)
    if found is None:
        return None
    divides = is_call(node, aten.div.Tensor)
    operands = _less_mean(value, axis, weights)
    root = exact_root(factor, divides)
    if root is not None and _channel_axis(root[0], node) == axis:
        return _Chain(node, axis, changed(operands, variance=root[0]), found)
    return None if divides else _Chain(node, axis, changed(operands, scale=factor), found)


def _value_and_factor(node: Node, weights: Container[Node]) -> tuple[Node | None, Node | None]:
    """The operand that depends on the input, and the one that belongs to the model."""
    left, right = node.args[:2]
    if isinstance(left, Node) and left in weights and is_call(node, aten.mul.Tensor):
        left, right = right, left
    if not (isinstance(left, Node) and isinstance(right, Node)) or left in weights or right not in weights:
        return None, None
    return left, right


def _channel_axis(vector: object, node: Node) -> int | None:
    """The axis, counted from the end, along which a broadcast operand varies; None unless it is one."""
    shape, full = shape_of(vector), shape_of(node)
    if shape is None or full is None or len(shape) > len(full):
        return None
    varying = [d for d in range(-len(shape), 0) if not same(shape[d], 1)]
    return varying[0] if len(varying) == 1 and same(shape[varying[0]], full[varying[0]]) else None


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


def _less_mean(value: Node, axis: int, weights: Container[Node]) -> Operands:
    if is_call(value, aten.sub.Tensor) and len(value.users) == 1 and bind(value)["alpha"] == 1:
        source, mean = value.args[:2]
        fits = isinstance(source, Node) and source not in weights and _floating(source, value)
        if fits and isinstance(mean, Node) and mean in weights and _channel_axis(mean, value) == axis:
            return Operands(source, mean=mean)  # type: ignore[arg-type]
    return Operands(value)


def _with_scale(chain: _Chain, weights: Container[Node]) -> _Chain:
    weight = _weight_of(chain, aten.mul.Tensor, weights)
    if weight is None or chain.reader is None or chain.operands.scale is not None:
        return chain
    return changed(chain, root=chain.reader, operands=changed(chain.operands, scale=weight))


def _with_shift(chain: _Chain, weights: Container[Node]) -> _Chain:
    bias = _weight_of(chain, aten.add.Tensor, weights)
    if bias is None or chain.reader is None or bind(chain.reader)["alpha"] != 1:
        return chain
    return changed(chain, root=chain.reader, operands=changed(chain.operands, shift=bias))


def _weight_of(chain: _Chain, target: object, weights: Container[Node]) -> Node | None:
    """The vector with which the only reader combines the chain."""
    reader = chain.reader
    if reader is None or reader.target is not target:
        return None
    other = reader.args[1] if reader.args[0] is chain.root else reader.args[0]
    fits = isinstance(other, Node) and other in weights and _channel_axis(other, reader) == chain.axis
    return other if fits and _floating(chain.root, reader) else None  # type: ignore[return-value]


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
        kind="batch_norm" if _has_mean(chain.operands) else "unified_norm",
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


def _has_mean(operands: Operands) -> bool:
    """A mean is subtracted, or hidden in a shift that is made of the scale."""
    if operands.mean is not None:
        return True
    return (
        operands.shift is not None and operands.scale is not None and _made_of(operands.shift, operands.scale)
    )


def _made_of(value: Node, part: Node) -> bool:
    seen, stack = {value}, [value]
    while stack:
        node = stack.pop()
        if node is part:
            return True
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False
