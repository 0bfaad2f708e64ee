"""Push maps from a value up into the weights that read it.

    W (M x + t) + b = (W M) x + (b + W t)

The mirror of :mod:`normfuse.analysis.absorb`: every reader must take the map, since the value is about
to be replaced by ``x``. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from normfuse.analysis.absorb import Leaf, Maps, linear_parts
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.flow import Carries, Shift
from normfuse.analysis.operator_table import carried_axis, flow
from normfuse.analysis.ranges import SPLITS, narrowed, pieces_of, widened
from normfuse.analysis.readers import value_readers
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.location import described
from normfuse.ir.sizes import rank_of, shape_of, widened_by
from normfuse.report import Refusal

__all__ = ["READERS", "Read", "push"]


@dataclass(frozen=True)
class Read:
    """``node`` contracts the channels with its operand ``weight``, along ``leaf.axis`` of it.

    Its operand ``bias`` takes the shift of the maps, where they have one.
    """

    node: Node
    weight: str
    leaf: Leaf
    maps: Maps
    bias: str

    @property
    def has_shift(self) -> bool:
        return not all(m.is_linear for m in self.maps)


@dataclass(frozen=True)
class _Contraction:
    """Which operand is contracted along which axis, and why a shift cannot follow, if so."""

    weight: str
    axis: int
    bias: str
    groups: int = 1
    no_shift: Refusal | None = None


_Row = Callable[[Node, dict[str, Any], Node, int], _Contraction | None]
READERS: dict[object, _Row] = {}


def _reader(*targets: object) -> Callable[[_Row], _Row]:
    def register(function: _Row) -> _Row:
        READERS.update(dict.fromkeys(targets, function))
        return function

    return register


def push(value: Node, axis: int, maps: Maps, weights: WeightValues) -> list[Read] | Refusal:
    """How every reader of ``value`` comes to read ``x`` instead, where ``value`` is ``maps`` of ``x``."""
    found = _push(value, axis, maps, weights)
    if isinstance(found, Refusal):
        return found
    readers = [read.node for read in found]
    again = next((node for node in readers if readers.count(node) > 1), None)
    return found if again is None else _read_again(again)


def _push(value: Node, axis: int, maps: Maps, weights: WeightValues) -> list[Read] | Refusal:
    found: list[Read] = []
    for user in value_readers(value):
        made = _into(user, value, axis, maps, weights)
        if isinstance(made, Refusal):
            return made
        found += made
    return found


def _into(user: Node, value: Node, axis: int, maps: Maps, weights: WeightValues) -> list[Read] | Refusal:
    if user.op == "output":
        message = f"the normalized values are returned, from {described(value)}"
        return Refusal("norm_is_output", message, value.name)
    if user.target is aten.detach.default and weights.train(maps):
        message = f"{described(user)} keeps gradients from the norm's own weights"
        return Refusal("grad_mode", message, user.name)
    if widened_by(user) < 0:
        return Refusal(
            "narrow_values",
            f"{described(user)} would round the values before they are normalized",
            user.name,
        )
    contraction = _contraction(user, value, axis)
    if contraction is not None:
        return _absorbed(user, contraction, maps, weights)
    regrouped = _regrouped(user, value, axis, maps)
    if regrouped is not None:
        return _push_all(regrouped, axis, weights)
    out = carried_axis(user, value, axis, maps)
    found = flow(user, out) if out is not None else None
    if out is None or not isinstance(found, Carries) or len(found.operands) > 1:
        return _nonlinear(user)
    if all(m.is_linear for m in maps) or found.shift is Shift.EVERYWHERE:
        return _push(user, out, maps, weights)
    if found.factor:
        return _push(user, out, (Diagonal(1 / found.factor), *maps, Diagonal(found.factor)), weights)
    message = f"{described(user)} does not carry the shift on to what reads it"
    return Refusal("shift_blocked", message, user.name)


def _regrouped(user: Node, value: Node, axis: int, maps: Maps) -> list[tuple[Node, Maps]] | None:
    """Where the channels go when they are split or joined, and with which maps."""
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


def _push_all(values: list[tuple[Node, Maps]], axis: int, weights: WeightValues) -> list[Read] | Refusal:
    found: list[Read] = []
    for value, maps in values:
        made = _push(value, axis, maps, weights)
        if isinstance(made, Refusal):
            return made
        found += made
    return found


def _nonlinear(user: Node) -> Refusal:
    return Refusal(
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


def _contraction(user: Node, value: Node, axis: int) -> _Contraction | None:
    row = READERS.get(user.target)
    reads = [a for a in (*user.args, *user.kwargs.values()) if a is value]
    return row(user, bind(user), value, axis) if row is not None and len(reads) == 1 else None


def _absorbed(user: Node, found: _Contraction, maps: Maps, weights: WeightValues) -> list[Read] | Refusal:
    bound = bind(user)
    weight, bias = bound[found.weight], bound.get(found.bias)
    if found.no_shift is not None and not all(m.is_linear for m in maps):
        return found.no_shift
    for node in (n for n in (weight, bias) if isinstance(n, Node)):
        if node not in weights:
            message = f"the weight of {described(user)} depends on data"
            return weights.varies(node) or Refusal("nonlinear_reader", message, user.name)
        refusal = weights.refusal(node)
        if refusal is not None:
            return refusal
        if not all(isinstance(size, int) for size in shape_of(node) or ()):
            message = f"the size of {described(node)} is not a fixed number"
            return Refusal("weight_shape", message, node.name)
    leaf = Leaf(weight, found.axis, linear_parts(maps), found.groups)
    return [Read(user, found.weight, leaf, maps, found.bias)]


@_reader(aten.linear.default)
def _linear(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    reads_channels = bound["input"] is value and axis == rank_of(value) - 1 and rank_of(bound["weight"]) == 2
    return _Contraction("weight", 1, "bias") if reads_channels else None


@_reader(aten.addmm.default)
def _addmm(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    if bound["mat1"] is not value or axis != 1:
        return None
    plain = bound["alpha"] == 1 and bound["beta"] == 1 and rank_of(bound["self"]) == 1
    return _Contraction("mat2", 0, "self", no_shift=None if plain else _no_bias(node))


@_reader(aten.mm.default, aten.matmul.default)
def _matmul(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    weight = "mat2" if "mat2" in bound else "other"
    if bound["self"] is not value or axis != rank_of(value) - 1 or rank_of(bound[weight]) != 2:
        return None
    return _Contraction(weight, 0, "", no_shift=_no_bias(node))


@_reader(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
def _conv(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    """With zeros around the input, what the shift adds differs between the border and the inside."""
    if bound["input"] is not value or axis != rank_of(value) - (rank_of(bound["weight"]) - 1):
        return None
    refusal = _zero_padding(node) if _pads(bound) else None
    return _Contraction("weight", 1, "bias", bound["groups"], refusal)


@_reader(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _conv_transpose(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    """Outputs differ in how many inputs they see, so a shift of the inputs is no bias."""
    if bound["input"] is not value or axis != rank_of(value) - (rank_of(bound["weight"]) - 1):
        return None
    return _Contraction("weight", 0, "bias", no_shift=_zero_padding(node))


@_reader(aten.convolution.default)
def _convolution(node: Node, bound: dict[str, Any], value: Node, axis: int) -> _Contraction | None:
    return (_conv_transpose if bound["transposed"] else _conv)(node, bound, value, axis)


def _pads(bound: dict[str, Any]) -> bool:
    padding = bound["padding"]
    if isinstance(padding, str):
        kernel = (shape_of(bound["weight"]) or ())[2:]
        return padding != "valid" and any(size != 1 for size in kernel)
    return any(not isinstance(p, int) or p != 0 for p in padding)


def _zero_padding(node: Node) -> Refusal:
    return Refusal(
        "zero_padding",
        f"{described(node)} pads the normalized values with zeros, to which the shift would be added as well",
        node.name, "pad with padding_mode='reflect', 'replicate' or 'circular', or put the norm after it",
    )  # fmt: skip


def _no_bias(node: Node) -> Refusal:
    message = f"{described(node)} has no bias of its own that could take the shift"
    return Refusal("no_bias", message, node.name)
