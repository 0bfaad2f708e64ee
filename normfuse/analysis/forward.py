"""Push maps from a value up into the weights that read it.

    W (M x + t) + b = (W M) x + (b + W t),    W M = (M' W')'

Along the axis that it contracts, a weight takes the transposes of the maps, the outermost first. The
mirror of :mod:`normfuse.analysis.absorb`: every reader must take the map, since the value is about to be
replaced by ``x``. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from normfuse.analysis.channel_map import Diagonal, Trait
from normfuse.analysis.contraction import reading
from normfuse.analysis.flow import Carries, Shift
from normfuse.analysis.operator_table import carried_axis, flow
from normfuse.analysis.over_sums import Crossed, crossed, takes_maps
from normfuse.analysis.packed import refusal_of_packed
from normfuse.analysis.plan import Maps
from normfuse.analysis.ranges import SPLITS, narrowed, pieces_of, widened
from normfuse.analysis.reads import Read, absorbed
from normfuse.analysis.spread_map import Spread, joined_axis
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, is_call
from normfuse.ir.location import described
from normfuse.ir.moves import RESHAPES
from normfuse.ir.readers import operands_of, value_readers
from normfuse.ir.sizes import is_bounded_by, shape_of, tensors_of, widened_by
from normfuse.report import Refusal

__all__ = ["Pushed", "Value", "push"]

Value = tuple[Node, int]


@dataclass(frozen=True)
class Pushed:
    """``reads`` take the maps.

    Attributes:
        carried: the values on the way to them, with the axis on which each carries maps, in execution order;
            where the maps change the number of channels, so do these.
        are_normalized: whether the values are of unit size without the maps, so that rounding them before
            the maps costs what rounding them behind does, but for a shift that cancels them.
        sums: sums among ``carried``, whose other operands take the inverse; only where ``crosses_sums``.
        norms: norms with stored statistics that read the values on an axis, and the maps that each takes.
    """

    reads: list[Read]
    carried: list[Value]
    are_normalized: bool = False
    crosses_sums: bool = False
    sums: list[Crossed] = field(default_factory=list)
    norms: list[tuple[Node, int, Maps]] = field(default_factory=list)

    def dtypes(self, value: Node) -> frozenset[torch.dtype]:
        """All dtypes in which anything between ``value`` and a weight is held, the weights included."""
        weights = (read.reading.weight.node for read in self.reads)
        held = [value, *(node for node, _ in self.carried), *weights]
        return frozenset(tensor.dtype for node in held for tensor in tensors_of(node))


def push(
    value: Node,
    axis: int,
    maps: Maps,
    weights: WeightValues,
    *,
    are_normalized: bool = False,
    crosses_sums: bool = False,
) -> Pushed | Refusal:
    """How every reader of ``value`` comes to read ``x`` instead, where ``value`` is ``maps`` of ``x``."""
    found = Pushed([], [], are_normalized, crosses_sums)
    refusal = _push(value, axis, maps, weights, found)
    if refusal is not None:
        return refusal
    readers = [*(read.node for read in found.reads), *(node for one in found.sums for node in one.changed)]
    again = next((node for node in readers if readers.count(node) > 1), None)
    found.carried.sort(key=lambda carried: carried[0])
    return found if again is None else _read_again(again)


def _push(value: Node, axis: int, maps: Maps, weights: WeightValues, found: Pushed) -> Refusal | None:
    """Add what reads a value to what was found, up to the first reader that cannot take the maps."""
    refusals = (_into(user, value, axis, maps, weights, found) for user in value_readers(value))
    return next((refusal for refusal in refusals if refusal is not None), None)


def _into(
    user: Node, value: Node, axis: int, maps: Maps, weights: WeightValues, found: Pushed
) -> Refusal | None:
    refusal = _refuse_reader(user, value, maps, weights, found)
    if refusal is not None:
        return refusal
    contraction = reading(user, value, axis) if _reads_once(user, value) else None
    if contraction is not None:
        read = absorbed(user, contraction, maps, weights)
        if isinstance(read, Refusal):
            return read
        found.reads.append(read)
        return None
    if found.crosses_sums and takes_maps(user, value, axis):
        found.norms.append((user, axis, maps))
        return None
    summed = crossed(user, value, axis, maps, weights) if found.crosses_sums else None
    if summed is not None:
        found.sums.append(summed)
        found.carried.append((user, axis))
        return _push(user, axis, maps, weights, found)
    regrouped = _regrouped(user, value, axis, maps)
    if regrouped is not None:
        found.carried.extend(dict.fromkeys([(user, axis), *((part, axis) for part, _ in regrouped)]))
        refusals = (_push(part, axis, moved, weights, found) for part, moved in regrouped)
        return next((refusal for refusal in refusals if refusal is not None), None)
    return _carried(user, value, axis, maps, weights, found)


def _refuse_reader(
    user: Node, value: Node, maps: Maps, weights: WeightValues, found: Pushed
) -> Refusal | None:
    if user.op == "output":
        message = f"the normalized values are returned, from {described(value)}"
        return Refusal("norm_is_output", message, value.name)
    if user.target is aten.detach.default and weights.train(maps):
        message = f"{described(user)} keeps gradients from the norm's own weights"
        return Refusal("grad_mode", message, user.name)
    if (widened_by(user) < 0 or is_bounded_by(user)) and not found.are_normalized:
        message = f"{described(user)} would round the values before they are normalized"
        return Refusal("narrow_values", message, user.name)
    return None


def _carried(
    user: Node, value: Node, axis: int, maps: Maps, weights: WeightValues, found: Pushed
) -> Refusal | None:
    """On through an operator that computes something else of each position, the channels apart."""
    out = carried_axis(user, value, axis, maps)
    joined = _joined(user, value, axis) if out is None else None
    if joined is not None:
        out, before, after = joined
        found.carried.append((user, out))
        return _push(user, out, tuple(Spread(m, before, after) for m in maps), weights, found)
    carries = flow(user, out) if out is not None else None
    if out is None or not isinstance(carries, Carries) or len(carries.operands) > 1:
        return _nonlinear(user)
    if not all(m.is_linear for m in maps) and carries.shift is not Shift.EVERYWHERE:
        if not carries.factor:
            message = f"{described(user)} does not carry the shift on to what reads it"
            return Refusal("shift_blocked", message, user.name)
        maps = (Diagonal(1 / carries.factor), *maps, Diagonal(carries.factor))
    found.carried.append((user, out))
    return _push(user, out, maps, weights, found)


def _joined(user: Node, value: Node, axis: int) -> tuple[int, int, int] | None:
    """Where a reshape joins the channels with other axes."""
    before, after = shape_of(value), shape_of(user)
    if not is_call(user, *RESHAPES) or user.args[0] is not value or before is None or after is None:
        return None
    return joined_axis(before, after, axis)


def _reads_once(user: Node, value: Node) -> bool:
    return sum(operand is value for operand in operands_of(user)) == 1


def _regrouped(user: Node, value: Node, axis: int, maps: Maps) -> list[tuple[Node, Maps]] | None:
    """Where the channels go when they are split or joined, and with which maps."""
    if not all(m.admitted_by(Trait.DIAGONAL) for m in maps):
        return None
    if is_call(user, *SPLITS):
        parts = [(part, pieces_of(part, axis)) for part in user.users]
        if not all(found for _, found in parts):
            return None
        return [(part, narrowed(maps, found[0].inner, found[0].length)) for part, found in parts]
    pieces = [piece for piece in pieces_of(user, axis) if piece.operand is value]
    if len(pieces) != 1:
        return None
    (piece,) = pieces
    joins = is_call(user, aten.cat.default, aten.concat.default)
    moved = widened if joins else narrowed
    return [(user, moved(maps, piece.outer if joins else piece.inner, piece.length))]


def _nonlinear(user: Node) -> Refusal:
    return refusal_of_packed(user) or Refusal(
        "nonlinear_reader",
        f"{described(user)} reads the normalized values, and has no weight that can take the scale and shift",
        user.name,
    )


def _read_again(node: Node) -> Refusal:
    return Refusal(
        "nonlinear_reader",
        f"{described(node)} reads the normalized values in several places, each of which would give its one "
        "weight another map", node.name,
    )  # fmt: skip
