"""The weight and bias of a norm go into the weights that read it; what is left of the norm is its core.

    W (w * N(x) + b) + c = (W diag(w)) N(x) + (c + W b)

for every reader at once (SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024, section 3.1). Only in inference,
and where each weight belongs to readers that all take the same map, so that nothing reads the weight as it
was. Numerics class: reassociated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.fx import Node

from normfuse.analysis.absorb import Maps
from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.forward import Read, push
from normfuse.analysis.weights import WeightValues
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import set_arguments
from normfuse.ir.canonical import canonical_region, is_expressible
from normfuse.ir.effects import Effects
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, Operands, norm_of
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.evidence import folded_into_readers
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.settle_shifts import note_shift
from normfuse.passes.stored_values import refusal_of_overflow, refusal_of_values
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["FOLD_SCALE", "affine_of", "fold_scale", "without_affine"]


@dataclass(frozen=True)
class _Move:
    """How the affine of one norm reaches its readers."""

    axis: int
    maps: Maps
    reads: list[Read]


def fold_scale(work: Work) -> None:
    """Move every weight and bias that all readers can take; record a reason for each that stays."""
    graph = work.program.gm.graph
    weights = WeightValues(work.program, Effects(graph))
    weights.admit(n for n in graph.nodes if FOLD in n.meta)
    found = {
        node: _planned(node, work, weights)
        for node in work.sites
        if _has_affine(norm_of(node)) and work.may(node, FOLD_SCALE.name)
    }
    _settle_ownership(found, weights)
    placement = Placement(graph)
    for node, move in found.items():
        done = _apply(node, move, work, placement) if isinstance(move, _Move) else move
        if done is not None:
            work.sites[node].refuse(done, FOLD_SCALE.name)


def _has_affine(region: NormRegion | None) -> bool:
    return region is not None and (
        region.spec.has_scale or region.spec.has_shift or region.spec.post_factor != 1
    )


def affine_of(spec: NormSpec, operands: Operands) -> Maps:
    """What follows the core of a norm, innermost first."""
    times = () if spec.post_factor == 1 else (Diagonal(spec.post_factor),)
    if not spec.has_scale and not spec.has_shift:
        return times
    return (Standardise(0.0, scale=operands.scale, shift=operands.shift), *times)


def without_affine(spec: NormSpec) -> NormSpec:
    """The core of a norm."""
    return replace(spec, has_scale=False, has_shift=False, weight_offset=0.0, post_factor=1.0, affine_dims=())


def _planned(node: Node, work: Work, weights: WeightValues) -> _Move | Refusal:
    region = norm_of(node)
    assert region is not None
    spec, operands = region.spec, region.operands(node)
    refusal = _refuse_form(node, spec, operands) or _refuse_operands(node, operands, work, weights)
    if refusal is not None:
        return refusal
    axis = rank_of(node) + spec.dims[0]
    maps = affine_of(spec, operands)
    pushed = push(node, axis, maps, weights)
    return pushed if isinstance(pushed, Refusal) else _Move(axis, maps, pushed.reads)


def _refuse_form(node: Node, spec: NormSpec, operands: Operands) -> Refusal | None:
    bare = without_affine(spec)
    if spec.affine_dims or len(spec.dims) != 1 or not is_expressible(bare):
        return Refusal(
            "unusual_form", f"{described(node)} is no plain norm over the axis along which its weight lies",
            node.name,
        )  # fmt: skip
    return None


def _refuse_operands(node: Node, operands: Operands, work: Work, weights: WeightValues) -> Refusal | None:
    width = (shape_of(node) or ())[norm_axis_of(node)]
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


def norm_axis_of(node: Node) -> int:
    """The axis that a norm over one axis normalizes."""
    region = norm_of(node)
    assert region is not None
    return rank_of(node) + region.spec.dims[0]


def _settle_ownership(found: dict[Node, _Move | Refusal], weights: WeightValues) -> None:
    """Refuse norms whose readers' weights are also read in another way, until none is left."""
    changed = True
    while changed:
        changed = False
        maps = {
            read.node: (read.leaf.maps, read.maps)
            for move in found.values() if isinstance(move, _Move) for read in move.reads
        }  # fmt: skip
        for node, move in found.items():
            refusal = _not_owned(move, maps, weights) if isinstance(move, _Move) else None
            if refusal is not None:
                found[node], changed = refusal, True


def _not_owned(move: _Move, maps: dict[Node, tuple[Maps, Maps]], weights: WeightValues) -> Refusal | None:
    for read in move.reads:
        for other in weights.readers_of(read.leaf.node):
            if maps.get(other) != maps[read.node]:
                return Refusal(
                    "weight_tied",
                    f"{weights.label(read.leaf.node)} is also read by {described(other)}, unchanged",
                    read.node.name, "untie the weights",
                )  # fmt: skip
    return None


def _apply(node: Node, move: _Move, work: Work, placement: Placement) -> Refusal | None:
    proof = folded_into_readers(FOLD_SCALE, node, move.reads, work)
    changed = [placement.behind(read) for read in move.reads]
    made = [value for one in changed for value in one.values()]
    refusal = refusal_of_overflow(node, made, work.program)
    if refusal is not None:
        placement.discard(made)
        return refusal
    rest_on_range(work.program, node, made)
    for read, values in zip(move.reads, changed, strict=True):
        set_arguments(read.node, values)
        if read.has_shift:
            note_shift(read.node)
    region = norm_of(node)
    assert region is not None
    operands, spec = region.operands(node), without_affine(region.spec)
    bare = replace(operands, scale=None, shift=None, sizes=())
    work.program.gm.add_submodule(str(node.target), canonical_region(spec, bare, node.meta["val"]))
    node.args = bare.as_args()
    work.restored[node] = (move.axis, move.maps)
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
