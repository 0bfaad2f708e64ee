"""A stream goes over to another basis: weights that write it take a map, and those behind its norms undo it.

Where a reader cannot undo it, that stands behind the norm; where no weight can take the map, it stands once,
at the stream's head. How a stream may change is settled by :mod:`normfuse.passes.basis`.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.forward import Pushed, push
from normfuse.analysis.resize import channels_of, resize
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import set_arguments
from normfuse.ir.readers import reads_only_type
from normfuse.ir.region import region_of
from normfuse.ir.sizes import rank_of, static_size
from normfuse.ir.spec import NormSpec
from normfuse.passes.basis import Basis, Change, plan
from normfuse.passes.cores import put_core, write_out
from normfuse.passes.decisions import carry_out, streams_of, weights_of
from normfuse.passes.evidence import Certificate
from normfuse.passes.ownership import Move
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range, rest_on_small_bias
from normfuse.passes.rule import Rule
from normfuse.passes.settle_shifts import note_shift
from normfuse.passes.work import Work
from normfuse.report import Site

__all__ = ["change_basis"]


def change_basis(work: Work, rule: Rule, basis: Basis) -> int:
    """Change every stream that can be, and record a reason for each norm of the others.

    Returns at how many places a map stands in the graph, since no weight could take it.
    """
    changes = _plans(work, rule, basis)
    placement, proofs = carry_out(rule, [(change.stream, change.decision) for change in changes], work)
    for change in changes:
        _write(change, basis, placement)
    weights, places = weights_of(work), sum(change.decision.cut is not None for change in changes)
    for change in changes:
        for norm, refusal in change.decision.refusals.items():
            work.sites[norm].refuse(refusal, rule.name)
        for norm in change.decision.converted:
            places += not _read(norm, change, basis, work, placement, weights)
            weights.admit(placement.made)
            _record(work.sites[norm], change.cores[norm], rule, proofs[norm])
    return places


def _record(site: Site, core: NormSpec, rule: Rule, proof: Certificate) -> None:
    if core.kind == site.becomes:
        site.fold(rule.name, proof, left=core)
    else:
        site.convert(core, rule.name, proof)


def _plans(work: Work, rule: Rule, basis: Basis) -> list[Change]:
    weights = weights_of(work)
    settled = {node for node in work.sites if not work.may(node, rule.name)}
    found = streams_of(work, weights, settled, True, basis.reads, (basis.into,))
    return [plan(stream, decision, basis, work, weights) for stream, decision in found]


def _write(change: Change, basis: Basis, placement: Placement) -> None:
    """The values of the stream as they are now; what weights do not write is mapped once."""
    decision, stream = change.decision, change.stream
    for value in decision.centred:
        if value == decision.cut:
            node, axis = value
            readers = {v[0] for v in decision.centred if value in stream.operands.get(v, ())}
            readers.update(v[0] for v in decision.centred if reads_only_type(v[0], node))
            if value not in stream.raw:
                readers.update(stream.norms.get(value, ()))
            placement.after(node, axis, basis.into, readers)
        elif not placement.is_erased(value[0]) and value[0].op != "placeholder":
            resize(*value, change.widths.get(value) or channels_of(*value) or 0)


def _read(
    norm: Node, change: Change, basis: Basis, work: Work, placement: Placement, weights: WeightValues
) -> bool:
    """What is left of a norm; whether what follows it is in the weights that read it, and not behind it."""
    move = change.moves.get(norm)
    pushed = None
    if move is not None:
        pushed = push(norm, move.axis, move.maps, weights, are_normalized=basis.keeps_lengths)
    if move is None or not isinstance(pushed, Pushed):
        _write_out(norm, change, basis, work, placement)
        return False
    behind = [(read, placement.behind(read)) for read in pushed.reads]
    made = [value for _, values in behind for value in values.values()]
    if not _fits(norm, made, move, work, placement):
        _write_out(norm, change, basis, work, placement)
        return False
    before = static_size(norm, move.axis)
    put_core(norm, change.cores[norm])
    now = static_size(norm, move.axis)
    for node, axis in pushed.carried:
        resize(node, axis, (channels_of(node, axis) if now == before else now) or 0)
    for read, values in behind:
        set_arguments(read.node, values)
        if read.has_shift:
            note_shift(read.node)
    work.restore(norm, norm, move.axis, move.maps, not basis.keeps_lengths)
    return True


def _fits(norm: Node, made: list[Node], move: Move, work: Work, placement: Placement) -> bool:
    """Whether the dtype of what reads a norm can hold its weights, now and when they change."""
    program = work.program
    if program.grad_enabled:
        return True
    if move.meets_float16 and rest_on_range(program, norm, made, placement) is not None:
        return False
    region = region_of(norm)
    rest_on_small_bias(program, norm, region.operands(norm), move.coarsest)
    return True


def _write_out(norm: Node, change: Change, basis: Basis, work: Work, placement: Placement) -> None:
    """The maps, and the norm's own weight and bias, as operators behind its core."""
    region = region_of(norm)
    axis, held = rank_of(norm) + region.spec.dims[0], region.operands(norm).as_args()[1:]
    value = write_out(norm, change.cores[norm], change.behind[norm])
    placement.mark_sources(value, {norm, *held})
    work.restore(norm, value, axis, (), not basis.keeps_lengths)
