"""What belongs to a norm with stored statistics besides its core: weight and bias behind it, and a skip.

norm(x) * weight + bias            norm(x) + skip * x    (RepBN: Guo et al. 2024, eq. 6)
"""

from __future__ import annotations

from collections.abc import Container

from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, bind, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.dtypes import WIDER
from normfuse.ir.sizes import rank_of, same, same_shape, shape_of, tensor_of
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.products import EXACT, channel_axis, unrepeated

__all__ = ["is_open", "weight_behind", "with_affine", "with_cast", "with_skip"]


def is_open(norm: Candidate) -> bool:
    """Whether something may still belong to the norm."""
    return norm.refusal is None and norm.spec.statistics != "input"


def with_affine(norm: Candidate, weights: Container[Node]) -> Candidate:
    """The norm with one more operator, where it has no weight or no bias yet."""
    spec, operands = norm.spec, norm.operands
    if not is_open(norm) or spec.has_shift or operands.skip is not None:
        return norm
    axis = next(d for d in range(-rank_of(norm.root), 0) if d not in spec.dims)
    rounded = {"scale_dtype": spec.out_dtype}
    weight = None if spec.has_scale else weight_behind(norm.root, aten.mul.Tensor, axis, weights)
    if weight is not None:
        (reader,) = readers(norm.root)
        return norm.grown(reader, changed(operands, scale=weight), has_scale=True, **rounded)
    bias = weight_behind(norm.root, aten.add.Tensor, axis, weights)
    if bias is not None:
        (reader,) = readers(norm.root)
        return norm.grown(reader, changed(operands, shift=bias), has_shift=True, **rounded)
    return norm


def weight_behind(root: Node, target: object, axis: int, weights: Container[Node]) -> Node | None:
    """The vector of the model with which the only reader combines a value, and keeps its dtype."""
    found = readers(root)
    if len(found) != 1 or found[0].target is not target or bind(found[0]).get("alpha", 1) != 1:
        return None
    (reader,) = found
    other = unrepeated(reader.args[1] if reader.args[0] is root else reader.args[0], weights)
    before, after = tensor_of(root), tensor_of(reader)
    if before is None or after is None or before.dim() != after.dim() or not before.is_floating_point():
        return None
    fits = isinstance(other, Node) and other in weights and channel_axis(other, reader) == axis
    return other if fits else None  # type: ignore[return-value]


def with_skip(norm: Candidate, weights: Container[Node]) -> Candidate:
    """``norm(x) + skip * x`` is one scale and one shift as well."""
    found = readers(norm.root)
    if len(found) != 1 or not is_open(norm) or norm.operands.skip is not None:
        return norm
    (reader,) = found
    skip = _skip(norm, reader, weights)
    if skip is None:
        return norm
    operands = changed(norm.operands, skip=skip)
    return norm.grown(reader, operands, kind="rep_batch_norm", stored=(*norm.spec.stored, "skip"))


def with_cast(norm: Candidate) -> Candidate:
    """The norm with the cast that alone reads it, where that is back to the dtype of its input.

    Under autocast a parameter takes half precision to float32, and the next product takes it back.
    """
    found = readers(norm.root)
    spec, value = norm.spec, tensor_of(found[0]) if len(found) == 1 else None
    if value is None or not is_open(norm) or spec.out_dtype not in WIDER.get(spec.source_dtype, ()):
        return norm
    (cast,) = found
    before, plain = tensor_of(norm.root), is_call(cast, *CASTS) and not bind(cast).get("copy")
    if not plain or before is None or bind(cast).get("memory_format") is not None:
        return norm
    fits = value.dtype == spec.source_dtype and value.device == before.device
    return norm.grown(cast) if fits else norm


def _skip(norm: Candidate, reader: Node, weights: Container[Node]) -> Node | None:
    if is_call(reader, aten.add.Tensor) and bind(reader)["alpha"] == 1:
        other = reader.args[1] if reader.args[0] is norm.root else reader.args[0]
        if is_call(other, aten.mul.Tensor) and len(readers(other)) == 1:  # type: ignore[arg-type]
            return _factor(other.args[:2], other, norm, weights)  # type: ignore[union-attr,arg-type]
    value = tensor_of(reader)
    if is_call(reader, aten.addcmul.default) and value is not None and value.dtype in EXACT:
        bound = bind(reader)
        if bound["self"] is norm.root and bound["value"] == 1:
            return _factor((bound["tensor1"], bound["tensor2"]), reader, norm, weights)
    return None


def _factor(
    pair: tuple[object, ...], product: Node, norm: Candidate, weights: Container[Node]
) -> Node | None:
    """The weight that multiplies the norm's own input, one number for all or one per channel."""
    source, result = tensor_of(norm.operands.source), tensor_of(product)
    place = next((i for i, value in enumerate(pair) if value is norm.operands.source), None)
    if place is None or source is None or result is None:
        return None
    skip = unrepeated(pair[1 - place], weights)
    shape = shape_of(skip)
    exact = result.dtype == source.dtype or result.dtype in WIDER.get(source.dtype, ())
    if not isinstance(skip, Node) or skip not in weights or shape is None or not exact:
        return None
    if len(shape) > source.dim() or not same_shape(product, norm.operands.source):
        return None
    return skip if all(same(shape[d], 1) or d not in norm.spec.dims for d in range(-len(shape), 0)) else None
