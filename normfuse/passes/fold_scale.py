"""The weight and bias of a norm go into the weights that read it; what is left of the norm is its core.

    W (w * N(x) + b) + c = (W diag(w)) N(x) + (c + W b)

for every reader at once (SliceGPT: Ashkboos et al. 2024, arXiv 2401.15024, section 3.1). Only in inference,
and where each weight belongs to readers that all take the same map, so that nothing reads the weight as it
was. Numerics class: reassociated.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import bind, set_arguments
from normfuse.ir.canonical import respell
from normfuse.ir.region import region_of
from normfuse.passes.affine_moves import planned, pushed
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import folded_into_readers
from normfuse.passes.idle import refuse_training
from normfuse.passes.ownership import Move, settle_ownership
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range, rest_on_small_bias
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.settle_shifts import note_shift
from normfuse.passes.stored_values import refusal_of_large_bias
from normfuse.passes.work import Shifted, Work
from normfuse.report import Refusal, Site

__all__ = ["FOLD_SCALE", "fold_scale"]


def fold_scale(work: Work) -> None:
    """Move every weight and bias that all readers can take; record a reason for each that stays."""
    weights = weights_of(work)
    moves: dict[Node, Move] = {}
    for node in work.sites:
        if region_of(node).spec.has_affine and work.may(node, FOLD_SCALE.name):
            move = planned(node, work, weights)
            if isinstance(move, Refusal):
                work.sites[node].refuse(move, FOLD_SCALE.name)
            else:
                moves[node] = move
    for node, refusal in settle_ownership(moves, weights).items():
        work.sites[node].refuse(refusal, FOLD_SCALE.name)
    placement, changed = Placement(work.program.gm.graph), set[Node]()
    for node, move in moves.items():
        _run(node, move, work, weights, placement, changed)


def _run(
    node: Node, move: Move, work: Work, weights: WeightValues, placement: Placement, changed: set[Node]
) -> None:
    """Apply a move; a reader that has taken the affine of another norm has a new weight, which takes both."""
    now: Move | Refusal = move
    if not changed.isdisjoint(move.readers):
        now = pushed(node, move.axis, move.maps, weights)
    done = now if isinstance(now, Refusal) else _apply(node, now, work, placement)
    if done is not None:
        work.sites[node].refuse(done, FOLD_SCALE.name)
        return
    changed.update(move.readers)
    weights.admit(placement.made)


def _apply(node: Node, move: Move, work: Work, placement: Placement) -> Refusal | None:
    region = region_of(node)
    operands, core = region.operands(node), region.spec.core
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
    respell(node, core, replace(operands, scale=None, shift=None))
    work.restore(node, node, move.axis, move.maps)
    work.sites[node].fold(FOLD_SCALE.name, proof, left=core)
    return None


def _waits(site: Site) -> bool:
    has_affine = site.spec["has_scale"] or site.spec["has_shift"] or site.spec["post_factor"] != 1
    return bool(has_affine) and site.spec["statistics"] == "input"


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
    idle=refuse_training,
)
