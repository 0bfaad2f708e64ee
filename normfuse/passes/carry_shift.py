"""What keys take of a norm's bias is dropped, and what values take goes to the projection behind attention.

    softmax(q' (k + s)) = softmax(q' k)        W softmax(a) (v + s) + c = W softmax(a) v + (c + W s)

:mod:`normfuse.passes.fold_scale` gives every reader of a norm a bias. A projection of keys needs none, and
one of values has no need of its first one where the projection behind attention has a bias already
(Namazifar et al. 2023, arXiv 2302.08626, section 2). Numerics class: reassociated.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch.fx import Node

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.attention import Attended, Projected, attended
from normfuse.analysis.places import gathered
from normfuse.analysis.reads import Read, absorbed
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import bind, set_arguments
from normfuse.ir.location import described
from normfuse.ir.region import norm_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import Certificate, certificate
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.work import Shifted, Work
from normfuse.report import Refusal

__all__ = ["CARRY_SHIFT", "carry_shift"]


@dataclass(frozen=True)
class _Onward:
    """A reader gets its bias back: weights behind attention take over, each with the channels it reads."""

    one: Shifted
    found: Attended
    reads: list[tuple[Read, tuple[int, ...]]]


def carry_shift(work: Work) -> None:
    """Give the readers of norms that attention alone reads the bias back that they had."""
    weights, placement = weights_of(work), Placement(work.program.gm.graph)
    taken = Counter(one.read.node for one in work.shifted)
    by_norm: dict[Node, list[Shifted]] = {}
    for one in work.shifted:
        if taken[one.read.node] == 1 and work.may(one.norm, CARRY_SHIFT.name):
            by_norm.setdefault(one.norm, []).append(one)
    for norm, readers in by_norm.items():
        carried = [_carried(one, work, weights, placement) for one in readers]
        done = [found for found in carried if isinstance(found, _Onward)]
        if done:
            region, proof = norm_of(norm), _proof(done, work)
            work.sites[norm].fold(CARRY_SHIFT.name, proof, left=None if region is None else region.spec)
        for refusal in carried:
            if isinstance(refusal, Refusal):
                work.sites[norm].refuse(refusal, CARRY_SHIFT.name)


def _carried(
    one: Shifted, work: Work, weights: WeightValues, placement: Placement
) -> _Onward | Refusal | None:
    """What was done for a reader, or the reason why it keeps a first bias though attention reads it."""
    found, refusal = attended(one.read.node, weights)
    planned = refusal or _planned(one, found, weights)
    done = planned if isinstance(planned, Refusal) else _apply(planned, work, placement)
    weights.admit(placement.made)
    if isinstance(done, _Onward):
        return done
    if not found.meets or one.before is not None:
        return None
    return done


def _planned(one: Shifted, found: Attended, weights: WeightValues) -> _Onward | Refusal:
    """Where the shift goes; a bias that is moved must find one where it goes, or nothing is saved."""
    reads: list[tuple[Read, tuple[int, ...]]] = []
    for projected in found.reads:
        if one.before is not None or not isinstance(bind(projected.node).get(projected.reading.bias), Node):
            return _saves_nothing(one, projected)
        read = absorbed(projected.node, projected.reading, one.read.maps, weights)
        if isinstance(read, Refusal):
            return read
        reads.append((read, projected.places))
    return _Onward(one, found, reads)


def _saves_nothing(one: Shifted, projected: Projected) -> Refusal:
    message = f"{described(one.read.node)} has a bias anyway, or {described(projected.node)} has none"
    return Refusal("does_not_pay", message, projected.node.name)


def _apply(planned: _Onward, work: Work, placement: Placement) -> _Onward | Refusal:
    one = planned.one
    taken = bind(one.read.node)[one.read.bias]
    set_arguments(one.read.node, {one.read.bias: one.before})
    made = [_given(one, read, places, placement) for read, places in planned.reads]
    refusal = rest_on_range(work.program, one.norm, made, placement)
    if refusal is not None:
        set_arguments(one.read.node, {one.read.bias: taken})
        return refusal
    for (read, _), bias in zip(planned.reads, made, strict=True):
        set_arguments(read.node, {read.bias: bias})
    return planned


def _proof(done: list[_Onward], work: Work) -> Certificate:
    behind = [read for planned in done for read, _ in planned.reads]
    held = [source for planned in done for mapping in planned.one.read.maps for source in mapping.sources]
    held += [read.leaf.node for read in (*(planned.one.read for planned in done), *behind)]
    unnoticed = [node.name for planned in done for node in planned.found.unnoticed]
    readers = [planned.one.read.node.name for planned in done]
    return certificate(CARRY_SHIFT, (unnoticed, [read.node.name for read in behind], readers), held, work)


def _given(one: Shifted, read: Read, places: tuple[int, ...], placement: Placement) -> Node:
    """The bias of a projection behind attention with what its weight makes of the shift of the values."""
    shift = placement.shifted(one.read)
    heads = placement.made_of({shift}, read.node, lambda graph: gathered(graph, shift, places))
    return placement.shifted(replace(read, maps=(Standardise(0.0, shift=heads),)))


CARRY_SHIFT = Rule(
    "carry_shift",
    Numerics.REASSOCIATED,
    "softmax(q' (k + s)) = softmax(q' k),  W softmax(a) (v + s) + c = W softmax(a) v + (c + W s)",
    "Namazifar et al. 2023, arXiv 2302.08626, section 2",
    (
        "unnoticed by scores: a query's scores grow by one number, and a softmax over the keys follows",
        "weights that sum to one: of each query over the keys, and the projection behind has a bias",
        "attention alone: nothing else reads the keys and values, a cache or the caller neither",
        "changed weights: a bias behind attention takes the shift, in its own copy",
    ),
    run=carry_shift,
    waits=lambda site: False,
)
