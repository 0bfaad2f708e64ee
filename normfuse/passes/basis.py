"""What happens to a stream that goes over to another basis, settled before anything is changed.

    N(W a + b)           =>  back N'(into W a + into b)
    W (w * N(x) + b) + c  =>  (W diag(w) back) N'(z) + (c + W b)

A rule says what the maps are, which norms do not mind them, and what a norm becomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch.fx import Node

from normfuse.analysis.centring import Decision
from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.forward import Pushed, push
from normfuse.analysis.plan import Maps
from normfuse.analysis.resize import Preview, channels_of, fixed_by_type
from normfuse.analysis.stream import Stream, Value
from normfuse.analysis.together import keep_together
from normfuse.analysis.weights import WeightValues
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import Operands, norm_of
from normfuse.ir.sizes import is_row_major, static_size, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.passes.own_affine import affine_of, refuse_operands
from normfuse.passes.ownership import Move, settle_ownership
from normfuse.passes.stored_values import refusal_of_large_bias
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["Basis", "Change", "plan"]


@dataclass(frozen=True)
class Basis:
    """``reads`` says which value a norm reads that does not mind ``into``; ``norm``, what it becomes there.

    ``norm`` gives, for the core of a norm over so many channels, the core on what ``into`` makes of them, and
    the maps, innermost first, that make of its result what the norm's was. With ``keeps_lengths`` it does not
    matter whether values are rounded before those maps or behind them.
    """

    into: ChannelMap
    reads: Callable[[Node], Value | None]
    norm: Callable[[NormSpec, int], tuple[NormSpec, Maps]]
    keeps_lengths: bool = False


@dataclass
class Change:
    """One stream's.

    Attributes:
        widths: the new number of channels of each value that has another one.
        cores: what is left of each norm.
        behind: what follows the core, but for the norm's own weight and bias.
        moves: how that, and the weight and bias, reach the readers; the norms for which they cannot are not
            in it.
    """

    stream: Stream
    decision: Decision
    widths: dict[Value, int] = field(default_factory=dict)
    cores: dict[Node, NormSpec] = field(default_factory=dict)
    behind: dict[Node, Maps] = field(default_factory=dict)
    moves: dict[Node, Move] = field(default_factory=dict)


def plan(stream: Stream, decision: Decision, basis: Basis, work: Work, weights: WeightValues) -> Change:
    """The change of what can change as a whole; a stream of which a part cannot stays."""
    change = Change(stream, decision)
    for value in keep_together(decision, stream):
        for norm in stream.norms.get(value, ()):
            decision.refusals.setdefault(norm, _torn(value))
    refusal = _plan_widths(change, basis) or _plan_norms(change, basis, work, weights)
    if refusal is None:
        return change
    decision.withdraw(lambda norm: refusal)
    return change


def _torn(value: Value) -> Refusal:
    return Refusal(
        "mixed_stream",
        f"something that reads {described(value[0])}, or that it is made of, does not change with it",
        value[0].name,
    )


def _plan_widths(change: Change, basis: Basis) -> Refusal | None:
    decision, preview = change.decision, Preview()
    for value in decision.centred:
        node, axis = value
        channels = channels_of(node, axis)
        if channels is None or basis.into.width(channels) < 1:
            message = f"the number of channels of {described(node)} is one, or only known when the graph runs"
            return Refusal("fixed_width", message, node.name)
        if value == decision.cut and not _is_row_major(node):
            return _layout(node)
        width = basis.into.width(channels)
        if width == channels:
            continue
        if value == decision.cut:
            preview.mapped(node, axis, basis.into)
            continue
        change.widths[value] = width
        refusal = preview.resized(node, axis, width, decision.plans.get(value, ()))
        refusal = refusal or fixed_by_type(node, axis)
        if refusal is not None:
            return refusal
    return None


def _plan_norms(change: Change, basis: Basis, work: Work, weights: WeightValues) -> Refusal | None:
    for value, norms in change.stream.norms.items():
        for norm in norms:
            region = norm_of(norm)
            if norm not in change.decision.converted or region is None:
                continue
            spec, operands = region.spec, region.operands(norm)
            change.cores[norm], change.behind[norm] = basis.norm(spec.core, static_size(*value) or 0)
            maps = (*change.behind[norm], *affine_of(spec, operands))
            move: Move | Refusal | None = refuse_operands(norm, operands, work, weights)
            if move is None and not spec.affine_dims:
                move = _moved(norm, value[1], maps, basis, weights)
            if isinstance(move, Move) and _keeps_precision(norm, operands, move, work.program):
                change.moves[norm] = move
    settle_ownership(change.moves, weights)
    written_out = (norm for norm in change.cores if norm not in change.moves)
    return next((_layout(norm) for norm in written_out if not _is_row_major(norm)), None)


def _keeps_precision(norm: Node, operands: Operands, move: Move, program: Program) -> bool:
    """Whether readers may add the bias of a norm, as where they take it without a change of basis."""
    return operands.shift is None or refusal_of_large_bias(norm, operands, move.coarsest, program) is None


def _is_row_major(node: Node) -> bool:
    result = tensor_of(node)
    return result is not None and is_row_major(result)


def _layout(node: Node) -> Refusal:
    message = f"{described(node)} gives values in an unusual order, which what would follow it does not keep"
    return Refusal("layout", message, node.name)


def _moved(norm: Node, axis: int, maps: Maps, basis: Basis, weights: WeightValues) -> Move | Refusal:
    pushed = push(norm, axis, maps, weights, are_normalized=basis.keeps_lengths)
    if isinstance(pushed, Refusal):
        return pushed
    dtypes = pushed.dtypes(norm)
    return _fixed(norm, axis, pushed, basis.into) or Move(axis, maps, pushed.reads, dtypes)


def _fixed(norm: Node, axis: int, pushed: Pushed, into: ChannelMap) -> Refusal | None:
    """Why something on the way to the readers needs the old number of channels, if so."""
    channels = static_size(norm, axis) or 0
    width, preview = into.width(channels), Preview()
    if width == channels:
        return None
    preview.mapped(norm, axis, into)
    refusals = (preview.resized(node, at, width, ()) for node, at in pushed.carried)
    values = [(norm, axis), *pushed.carried]
    return next((r for r in (*refusals, *(fixed_by_type(*v) for v in values)) if r is not None), None)
