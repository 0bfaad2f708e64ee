"""What stands around a recognised norm: what it is a norm of, and what is done to its result."""

from __future__ import annotations

from collections.abc import Container

from torch.fx import Node

from normfuse.ir.calls import CASTS, aten, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.sizes import same, shape_of, tensor_of
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.operands import varying_dims

__all__ = ["modulation", "of_weight"]

_VIEWS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.alias.default)


def of_weight(norm: Candidate, weights: Container[Node]) -> Candidate:
    """A LayerNorm of each filter of a convolution is weight standardization (Qiao et al. 2019, eq. 5)."""
    spec, source = norm.spec, norm.operands.source
    shape = shape_of(source)
    if spec.kind != "layer_norm" or spec.has_shift or shape is None:
        return norm
    while source not in weights and is_call(source, *_VIEWS, *CASTS) and isinstance(source.args[0], Node):
        source = source.args[0]
    filters = shape_of(source)
    whole = spec.dims == tuple(range(1 - len(shape), 0))
    if source not in weights or filters is None or len(filters) < 3 or not whole:
        return norm
    return changed(norm, spec=spec.as_kind("weight_standardization"))


def modulation(root: Node) -> str:
    """What multiplies and shifts the result, when that depends on the input.

    ``"gate"`` where each element has a factor of its own, ``"scale"`` and ``"shift"`` where the
    factor or the addend is shared by positions, as in adaptive norms.
    """
    words: list[str] = []
    for target, shared, own in ((aten.mul.Tensor, "scale", "gate"), (aten.add.Tensor, "shift", "")):
        reader = _reader(root)
        if reader is None or not is_call(reader, target):
            continue
        other = reader.args[1] if reader.args[0] is root else reader.args[0]
        varying = varying_dims(other, reader) if tensor_of(other) is not None and other is not root else None
        if varying is None:
            continue
        word = own if _is_full(varying, reader) else shared
        if not word:
            continue
        words.append(word)
        root = reader
    return " and ".join(words)


def _reader(node: Node) -> Node | None:
    """The only reader, through casts."""
    found = readers(node)
    while len(found) == 1 and is_call(found[0], *CASTS) and found[0].args[0] is node:
        node = found[0]
        found = readers(node)
    return found[0] if len(found) == 1 else None


def _is_full(varying: tuple[int, ...], result: Node) -> bool:
    shape = shape_of(result)
    return shape is not None and len(varying) == sum(1 for size in shape if not same(size, 1))
