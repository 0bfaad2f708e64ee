"""The weight and bias of a norm go into the weights that read it; what is left of the norm is its core.

    W (w * N(x) + b) + c = (W diag(w)) N(x) + (c + W b)

for every reader at once (SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024, section 3.1). Only in inference,
and where each weight belongs to readers that all take the same map, so that nothing reads the weight as it
was. Numerics class: reassociated.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.forward import Pushed, push
from normfuse.analysis.plan import Maps
from normfuse.analysis.ranges import SPLITS
from normfuse.analysis.rows_layout import LAYOUT
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import CASTS, aten, bind, set_arguments
from normfuse.ir.canonical import canonical_region, is_core_of_groups, is_expressible
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, Operands, norm_of
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import folded_into_readers
from normfuse.passes.ownership import Move, settle_ownership
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range, rest_on_small_bias
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.settle_shifts import note_shift
from normfuse.passes.stored_values import refusal_of_large_bias, refusal_of_values
from normfuse.passes.work import Restored, Shifted, Work
from normfuse.report import Refusal, Site

#: Operators that make no value larger.
_KEEP_SIZE = LAYOUT | {
    *SPLITS, *CASTS, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.dropout.default, aten.mean.dim,
}  # fmt: skip

__all__ = ["FOLD_SCALE", "affine_of", "fold_scale", "refuse_operands", "without_affine"]


def fold_scale(work: Work) -> None:
    """Move every weight and bias that all readers can take; record a reason for each that stays."""
    weights = weights_of(work)
    moves: dict[Node, Move] = {}
    for node in work.sites:
        if _has_affine(norm_of(node)) and work.may(node, FOLD_SCALE.name):
            _sort(node, _planned(node, work, weights), moves, work)
    for node, refusal in settle_ownership(moves, weights).items():
        work.sites[node].refuse(refusal, FOLD_SCALE.name)
    placement, changed = Placement(work.program.gm.graph), set[Node]()
    for node, move in moves.items():
        _run(node, move, work, weights, placement, changed)


def _sort(node: Node, planned: Move | Refusal, moves: dict[Node, Move], work: Work) -> None:
    if isinstance(planned, Refusal):
        work.sites[node].refuse(planned, FOLD_SCALE.name)
    else:
        moves[node] = planned


def _run(
    node: Node, move: Move, work: Work, weights: WeightValues, placement: Placement, changed: set[Node]
) -> None:
    """Apply a move; a reader that has taken the affine of another norm has a new weight, which takes both."""
    now: Move | Refusal = move
    if not changed.isdisjoint(move.readers):
        now = _pushed(node, move.axis, move.maps, weights)
    done = now if isinstance(now, Refusal) else _apply(node, now, work, placement)
    if done is not None:
        work.sites[node].refuse(done, FOLD_SCALE.name)
        return
    changed.update(move.readers)
    weights.admit(placement.made)


def _has_affine(region: NormRegion | None) -> bool:
    return region is not None and (
        region.spec.has_scale or region.spec.has_shift or region.spec.post_factor != 1
    )


def affine_of(spec: NormSpec, operands: Operands) -> Maps:
    """What follows the core of a norm with a weight or a bias, innermost first."""
    times = () if spec.post_factor == 1 else (Diagonal(spec.post_factor),)
    return (Standardise(0.0, scale=operands.scale, shift=operands.shift), *times)


def without_affine(spec: NormSpec) -> NormSpec:
    """The core of a norm."""
    return replace(spec, has_scale=False, has_shift=False, weight_offset=0.0, post_factor=1.0, affine_dims=())


def _planned(node: Node, work: Work, weights: WeightValues) -> Move | Refusal:
    region = norm_of(node)
    assert region is not None
    spec, operands = region.spec, region.operands(node)
    refusal = _refuse_form(node, spec, operands) or refuse_operands(node, operands, work, weights)
    if refusal is not None:
        return refusal
    return _pushed(node, affine_axis(node, spec), affine_of(spec, operands), weights)


def _pushed(node: Node, axis: int, maps: Maps, weights: WeightValues) -> Move | Refusal:
    found = push(node, axis, maps, weights, are_normalized=True)
    if isinstance(found, Refusal):
        return found
    move = Move(axis, maps, found.reads, found.dtypes(node))
    return _refuse_growth(node, found, move) or _refuse_integers(found, weights) or move


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


def _refuse_form(node: Node, spec: NormSpec, operands: Operands) -> Refusal | None:
    bare = without_affine(spec)
    if not (is_expressible(bare) or is_core_of_groups(bare)):
        return Refusal("unusual_form", f"{described(node)} without its weight is no plain norm", node.name)
    if len(spec.affine_dims or spec.dims) != 1:
        message = f"the weight of {described(node)} lies along several axes"
        return Refusal("several_axes", message, node.name)
    return None


def refuse_operands(node: Node, operands: Operands, work: Work, weights: WeightValues) -> Refusal | None:
    region = norm_of(node)
    assert region is not None
    width = (shape_of(node) or ())[affine_axis(node, region.spec)]
    for operand in (operands.scale, operands.shift):
        if operand is None:
            continue
        if operand not in weights:
            return weights.varies(operand) or Refusal(
                "computed_scale",
                f"{described(operand)}, by which {described(node)} scales or shifts, depends on the call",
                node.name,
            )
        refusal = weights.refusal(operand) or weights.refusal_apart(operand, [node])
        if refusal is not None:
            return refusal
        entries = [size for size in shape_of(operand) or () if size != 1]
        if entries not in ([], [width]):
            message = f"{described(operand)} has more than one number for each channel"
            return Refusal("weight_shape", message, node.name)
    return refusal_of_values(node, operands, 0.0, work.program)


def affine_axis(node: Node, spec: NormSpec) -> int:
    """The axis along which the weight and bias of a norm lie."""
    (dim,) = spec.affine_dims or spec.dims
    return rank_of(node) + dim


def _apply(node: Node, move: Move, work: Work, placement: Placement) -> Refusal | None:
    region = norm_of(node)
    assert region is not None
    operands, spec = region.operands(node), without_affine(region.spec)
    refusal = refusal_of_large_bias(node, operands, move.coarsest, work.program)
    if refusal is not None:
        return refusal
    proof = folded_into_readers(FOLD_SCALE, node, move.reads, work)
    changed = [placement.behind(read) for read in move.reads]
    made = [value for one in changed for value in one.values()]
    refusal = rest_on_range(work.program, node, made, placement)
    if refusal is not None:
        return refusal
    rest_on_small_bias(work.program, node, operands, move.coarsest)
    for read, values in zip(move.reads, changed, strict=True):
        if read.has_shift:
            work.shifted.append(Shifted(node, read, bind(read.node)[read.bias]))
            note_shift(read.node)
        set_arguments(read.node, values)
    bare = replace(operands, scale=None, shift=None, sizes=())
    work.program.gm.add_submodule(str(node.target), canonical_region(spec, bare, node.meta["val"]))
    node.args = bare.as_args()
    work.restored[node] = Restored(node, move.axis, move.maps)
    work.sites[node].fold(FOLD_SCALE.name, proof, left=spec)
    return None


def _waits(site: Site) -> bool:
    has_affine = site.spec["has_scale"] or site.spec["has_shift"] or site.spec["post_factor"] != 1
    return bool(has_affine) and site.spec["statistics"] == "input"


def _trains(work: Work) -> Refusal | None:
    if not work.program.grad_enabled:
        return None
    return Refusal(
        "trains", "gradients are recorded, and the weight and bias of the norm may train",
        remedy="call the model under torch.no_grad() or torch.inference_mode()",
    )  # fmt: skip


FOLD_SCALE = Rule(
    "fold_scale",
    Numerics.REASSOCIATED,
    "W (w * N(x) + b) + c = (W diag(w)) N(x) + (c + W b)",
    "Ashkboos et al. 2024, arXiv 2401.15024, section 3.1",
    (
        "made of weights: what the norm scales and shifts by depends on no data",
        "reached in full: every reader of the norm has a weight that takes the map, or carries it to such",
        "changed weights: nothing reads them as they were",
    ),
    run=fold_scale,
    waits=_waits,
    idle=_trains,
)
