"""How the weight and bias of a norm reach what reads it, and why they cannot, settled before any changes."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.forward import Pushed, push
from normfuse.analysis.plan import Maps
from normfuse.analysis.ranges import SPLITS
from normfuse.analysis.rows_layout import LAYOUT
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import CASTS, aten
from normfuse.ir.canonical import is_core_of_groups, is_expressible
from normfuse.ir.location import described
from normfuse.ir.region import region_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.own_affine import affine_axis, affine_of, refuse_operands
from normfuse.passes.ownership import Move
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["planned", "pushed"]

#: Operators that make no value larger.
_KEEP_SIZE = LAYOUT | {
    *SPLITS, *CASTS, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.dropout.default, aten.mean.dim,
}  # fmt: skip


def planned(node: Node, work: Work, weights: WeightValues) -> Move | Refusal:
    """How all that follows the core of a norm reaches every reader."""
    region = region_of(node)
    spec, operands = region.spec, region.operands(node)
    refusal = _refuse_form(node, spec) or refuse_operands(node, operands, work, weights)
    if refusal is not None:
        return refusal
    return pushed(node, affine_axis(node, spec), affine_of(spec, operands), weights)


def pushed(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Move | Refusal:
    """How ``maps`` of what a norm gives reach every reader, on this axis."""
    found = push(node, axis, maps, weights, are_normalized=True)
    if isinstance(found, Refusal):
        return found
    move = Move(axis, maps, found.reads, found.dtypes(node))
    return _refuse_growth(node, found, move) or _refuse_integers(found, weights) or move


def _refuse_form(node: Node, spec: NormSpec) -> Refusal | None:
    if not (is_expressible(spec.core) or is_core_of_groups(spec.core)):
        return Refusal("unusual_form", f"{described(node)} without its weight is no plain norm", node.name)
    if len(spec.affine_dims or spec.dims) != 1:
        message = f"the weight of {described(node)} lies along several axes"
        return Refusal("several_axes", message, node.name)
    return None


def _refuse_growth(node: Node, found: Pushed, move: Move) -> Refusal | None:
    """Values of a norm fit into float16; sums of many perhaps do only with a small weight."""
    grown = next((value for value, _ in found.carried if value.target not in _KEEP_SIZE), None)
    if not move.meets_float16 or grown is None:
        return None
    message = f"without the weight of {described(node)}, {described(grown)} may be too large for float16"
    return Refusal("overflow", message, grown.name, "keep the values in a wider dtype")


def _refuse_integers(found: Pushed, weights: WeightValues) -> Refusal | None:
    """What a model holds in few bits, and makes weights of at each call, would be held as these weights."""
    for read in found.reads:
        held = (one for one in weights.stored(read.leaf.node) if not one.value.is_floating_point())
        packed = next(held, None)
        if packed is not None:
            return Refusal(
                "weight_dtype",
                f"the weight of {described(read.node)} is made of {packed.name} at each call, in fewer bits",
                read.node.name, "rewrite the model before it is quantized",
            )  # fmt: skip
    return None
