"""What sums, differences, products and means with weights make of a norm and of what it reads.

    a * norm(x) + b * x + c,    a, b and c made of numbers and of vectors of the model

So ``x + norm(x)``, ``lerp(x, norm(x), 0.3)`` and ``(norm(x) + x) * weight + bias`` are one scale and one
shift per channel as well.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, readers
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import opmath
from normfuse.ir.region import Operands
from normfuse.ir.sizes import rank_of, same, same_shape, shape_of, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.products import EXACT, channel_axis, keeps, product, unrepeated
from normfuse.patterns.stored_growth import is_open
from normfuse.patterns.stored_operands import stored_root
from normfuse.patterns.terms import Term, divided, negative, node_of, plus, times

__all__ = ["scaled_by_root", "with_sums"]

#: Longer chains between a norm and where it meets its input again are not looked at.
_DEPTH = 8


@dataclass(frozen=True)
class _Sum:
    """``norm * norm(x) + source * x + added``."""

    norm: Term = 0.0
    source: Term = 0.0
    added: Term = 0.0

    @property
    def is_constant(self) -> bool:
        return self.norm == 0.0 and self.source == 0.0

    def map(self, change: Callable[[Term], Term | None]) -> _Sum | None:
        terms = [change(term) for term in (self.norm, self.source, self.added)]
        return None if None in terms else _Sum(*terms)  # type: ignore[arg-type]

    def plus(self, other: _Sum) -> _Sum:
        pairs = ((self.norm, other.norm), (self.source, other.source), (self.added, other.added))
        return _Sum(*(plus(*pair) for pair in pairs))

    def times(self, factor: Term) -> _Sum:
        return _Sum(*(times(t, factor) for t in (self.norm, self.source, self.added)))


def with_sums(norm: Candidate, weights: Container[Node]) -> Candidate:
    """The norm with the next operator that reads it and nothing that depends on the input but its source."""
    for root in readers(norm.root) if is_open(norm) else ():
        reading = _Reading(norm.operands.source, norm.root, _channels(norm), root, weights)
        found = reading.of(root, 0)
        if found is not None and found.norm != 0.0 and reading.is_whole():
            return _grown(norm, root, found, reading.held)
    return norm


def scaled_by_root(node: Node, weights: Container[Node]) -> Candidate | None:
    """One scale, made of a stored root in whatever way, and one shift, in a single operator."""
    names = _FACTORS.get(node.target, ())
    factors = [unrepeated(bind(node)[name], weights) for name in names]
    axes = [channel_axis(f, node) for f in factors if f in weights and stored_root(f) is not None]  # type: ignore[arg-type]
    sources = [n for n in node.all_input_nodes if n not in weights]
    if len(axes) != 1 or axes[0] is None or len(sources) != 1 or not keeps(sources[0], node):
        return None
    reading = _Reading(sources[0], None, axes[0], node, weights)
    found = reading.of(node, 0)
    if found is None or isinstance(found.source, float):
        return None
    spec = _spec(sources[0], node, axes[0])
    return _grown(Candidate(spec, sources[0], Operands(sources[0])), node, found, reading.held)


def _spec(source: Node, node: Node, axis: int) -> NormSpec:
    before, after = tensor_of(source), tensor_of(node)
    assert before is not None
    assert after is not None
    return NormSpec(
        kind="unified_norm",
        dims=tuple(d for d in range(-before.dim(), 0) if d != axis),
        eps=0.0,
        source_dtype=before.dtype,
        compute_dtype=torch.promote_types(before.dtype, after.dtype),
        scale_dtype=after.dtype,
        out_dtype=after.dtype,
        statistics="stored",
    )


def _channels(norm: Candidate) -> int:
    return next(d for d in range(-rank_of(norm.root), 0) if d not in norm.spec.dims)


@dataclass
class _Reading:
    """The operators from a source, and from its norm if there is one, to ``root``, and what they read.

    ``axis`` is that of the channels, ``inner`` are the operators, ``held`` the weights.
    """

    source: Node
    norm: Node | None
    axis: int
    root: Node
    weights: Container[Node]
    inner: set[Node] = field(default_factory=set)
    held: dict[Node, None] = field(default_factory=dict)

    def is_whole(self) -> bool:
        """Whether nobody outside reads what is between; the norm's source may be read anywhere."""
        begins = () if self.norm is None else (self.norm,)
        return all(u in self.inner for n in (*begins, *self.inner - {self.root}) for u in readers(n))

    def of(self, value: Any, depth: int) -> _Sum | None:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return _Sum(added=float(value))
        if not isinstance(value, Node) or depth > _DEPTH:
            return None
        if value is self.norm or value is self.source:
            return _Sum(norm=1.0) if value is self.norm else _Sum(source=1.0)
        if value in self.weights:
            return self._weight(value)
        if not self._lies_alike(value):
            return None
        self.inner.add(value)
        return self._call(value, depth + 1)

    def _weight(self, value: Node) -> _Sum | None:
        entries = unrepeated(value, self.weights)
        sizes = shape_of(entries)
        is_one = (
            sizes is not None and all(same(size, 1) for size in sizes) and len(sizes) <= rank_of(self.root)
        )
        if not is_one and channel_axis(entries, self.root) != self.axis:
            return None
        self.held[value] = None
        return _Sum(added=entries)  # type: ignore[arg-type]

    def _lies_alike(self, value: Node) -> bool:
        before, after = tensor_of(self.norm or self.source), tensor_of(value)
        if before is None or after is None or before.dtype != after.dtype:
            return False
        return same_shape(value, self.source)

    def _call(self, node: Node, depth: int) -> _Sum | None:
        read = _READERS.get(node.target)
        if read is None:
            return self._product(node, depth)
        found, exact = bind(node), tensor_of(node)
        if node.target in _TWO_AT_ONCE and (exact is None or exact.dtype not in EXACT):
            return None
        names = [n for n in ("self", "other", "end", "weight", "tensor1", "tensor2") if n in found]
        factor = found.get("alpha", found.get("value", 1))
        parts = {name: self.of(found[name], depth) for name in names}
        if None in parts.values() or not isinstance(factor, (int, float)):
            return None
        return read(parts, float(factor))  # type: ignore[arg-type]

    def _product(self, node: Node, depth: int) -> _Sum | None:
        """One that is spelled by an operator of many operands."""
        found = product(node, self.weights)
        if found is None or found.mean is not None or found.axis != self.axis:
            return None
        value = self.of(found.value, depth)
        self.held.update(dict.fromkeys(n for n in node.all_input_nodes if n in self.weights))
        if value is None:
            return None
        value = value.times(found.factor)
        return value if found.shift is None else value.plus(_Sum(added=found.shift))


def _times(left: _Sum, right: _Sum) -> _Sum | None:
    if left.is_constant:
        left, right = right, left
    return left.times(right.added) if right.is_constant else None


def _over(left: _Sum, right: _Sum) -> _Sum | None:
    return left.map(lambda term: divided(term, right.added)) if right.is_constant else None


def _less(left: _Sum, right: _Sum, factor: float = 1.0) -> _Sum:
    return left.plus(right.times(negative(factor)))


_Parts = Mapping[str, _Sum]


def _moved(start: _Sum, way: _Sum | None) -> _Sum | None:
    return None if way is None else start.plus(way)


def _scaled(value: _Sum | None, factor: float) -> _Sum | None:
    return None if value is None else value.times(factor)


_READERS: dict[object, Callable[[_Parts, float], _Sum | None]] = {
    aten.neg.default: lambda p, _: p["self"].times(-1.0),
    aten.add.Tensor: lambda p, alpha: p["self"].plus(p["other"].times(alpha)),
    aten.add.Scalar: lambda p, alpha: p["self"].plus(p["other"].times(alpha)),
    aten.sub.Tensor: lambda p, alpha: _less(p["self"], p["other"], alpha),
    aten.sub.Scalar: lambda p, alpha: _less(p["self"], p["other"], alpha),
    aten.rsub.Tensor: lambda p, alpha: _less(p["other"], p["self"], alpha),
    aten.rsub.Scalar: lambda p, alpha: _less(p["other"], p["self"], alpha),
    aten.mul.Tensor: lambda p, _: _times(p["self"], p["other"]),
    aten.mul.Scalar: lambda p, _: _times(p["self"], p["other"]),
    aten.div.Tensor: lambda p, _: _over(p["self"], p["other"]),
    aten.div.Scalar: lambda p, _: _over(p["self"], p["other"]),
    aten.lerp.Tensor: lambda p, _: _moved(p["self"], _times(_less(p["end"], p["self"]), p["weight"])),
    aten.lerp.Scalar: lambda p, _: _moved(p["self"], _times(_less(p["end"], p["self"]), p["weight"])),
    aten.addcmul.default: lambda p, value: _moved(
        p["self"], _scaled(_times(p["tensor1"], p["tensor2"]), value)
    ),
    aten.addcdiv.default: lambda p, value: _moved(
        p["self"], _scaled(_over(p["tensor1"], p["tensor2"]), value)
    ),
}
_FACTORS: dict[object, tuple[str, ...]] = {
    aten.mul.Tensor: ("self", "other"),
    aten.div.Tensor: ("other",),
    aten.addcmul.default: ("tensor1", "tensor2"),
    aten.addcdiv.default: ("tensor1", "tensor2"),
    aten.lerp.Tensor: ("weight",),
}
_TWO_AT_ONCE = (aten.lerp.Tensor, aten.lerp.Scalar, aten.addcmul.default, aten.addcdiv.default)


def _grown(norm: Candidate, root: Node, found: _Sum, held: Iterable[Node]) -> Candidate:
    """The norm with operands that are made ahead of ``root``, which runs what it is spelled with."""
    old, value = norm.operands, tensor_of(root)
    assert value is not None
    scale = times(found.norm, 1.0 if old.scale is None else old.scale)
    shift = plus(times(found.norm, 0.0 if old.shift is None else old.shift), found.added)
    skip = plus(times(found.norm, 0.0 if old.skip is None else old.skip), found.source)
    if norm.root is old.source:
        scale, skip = found.source, 0.0
    if scale == 0.0:
        return norm
    dtype = torch.promote_types(opmath(value.dtype), norm.spec.compute_dtype)
    with root.graph.inserting_before(root):
        made = [node_of(term, root.graph, dtype, value) for term in (scale, shift, skip)]
    operands = changed(old, scale=None if scale == 1.0 else made[0], shift=made[1], skip=made[2])
    read, named = dict.fromkeys((*old.named(), *old.held, *held)), operands.named()
    operands = changed(operands, held=tuple(n for n in read if n not in named))
    return norm.grown(
        root,
        operands,
        kind="rep_batch_norm" if operands.skip is not None else norm.spec.kind,
        has_scale=operands.scale is not None,
        has_shift=operands.shift is not None,
        stored=tuple(role for role in ("mean", "variance", "skip") if getattr(operands, role) is not None),
        scale_dtype=norm.spec.out_dtype,
    )
