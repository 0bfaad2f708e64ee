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
from normfuse.ir.sizes import lies_alike, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.products import channel_axis, keeps, product
from normfuse.patterns.stored_growth import weight_behind
from normfuse.patterns.stored_operands import (
    alike,
    entries,
    exact_root,
    kind_of,
    product_with,
    stored_root,
    told_apart,
)
from normfuse.patterns.stored_sums import scaled_by_root

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
        elif (scaled := scaled_by_root(node, weights)) is not None:
            candidates.append(scaled)
    return candidates


def _begun(node: Node, weights: Container[Node]) -> _Chain | None:
    """``weight * [x - mean] * scale``, where the scale is made of a stored root, or ``/ root``."""
    found = product(node, weights)
    eps = None if found is None else stored_root(found.factor)
    if found is None or eps is None:
        return None
    factor, axis, divides = found.factor, found.axis, found.divides
    inner, weight = (found.value, None) if found.mean else _before_weight(found.value, axis, weights)
    root = exact_root(factor, divides)
    if root is not None and alike(root[0], factor):
        operands = changed(
            _less_mean(inner, axis, weights), scale=weight, variance=root[0], shift=found.shift
        )
    elif divides:
        return None
    else:
        operands = changed(_less_mean(found.value, axis, weights), scale=factor, shift=found.shift)
    if found.mean is not None:
        operands = changed(operands, source=found.value, mean=found.mean)
    return _Chain(node, axis, operands, eps, factor, divides)


def _before_weight(value: Node, axis: int, weights: Container[Node]) -> tuple[Node, Node | None]:
    """What a weight that comes first multiplies, and the weight; one made of a root is a norm of its own."""
    if is_call(value, aten.mul.Tensor) and len(readers(value)) == 1:
        found = product(value, weights)
        if found is not None and found.axis == axis and stored_root(found.factor) is None:
            return found.value, found.factor
    return value, None


def _less_mean(value: Node, axis: int, weights: Container[Node]) -> Operands:
    if is_call(value, aten.sub.Tensor) and len(value.users) == 1 and bind(value)["alpha"] == 1:
        source, mean = value.args[:2]
        fits = isinstance(source, Node) and source not in weights and keeps(source, value)
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
