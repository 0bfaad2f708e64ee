"""Streams: the values that a map on the channel axis reaches together.

Starting from the input of a norm, a stream closes over every operator that carries linear maps,
backward to where values are written and forward to where they are read. A value is

* *raw* when something that is not invariant under centring reads it, or anything made of it;
* *blocked* when its operator cannot take the map from weights;
* anything else is free: it may be centred, and every reader is indifferent to its mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch.fx import Node

from normfuse.analysis.channel_map import Centre
from normfuse.analysis.flow import Blocks, Carries, Scales
from normfuse.analysis.operator_table import carried_axis, flow
from normfuse.analysis.own_centring import centred_by_hand, is_own_mean
from normfuse.analysis.parts import Part, part_read_apart
from normfuse.analysis.rows_layout import LAYOUT
from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, is_call
from normfuse.ir.canonical import is_expressible
from normfuse.ir.effects import Effects
from normfuse.ir.location import described
from normfuse.ir.readers import reads_only_type
from normfuse.ir.region import UNLIFTED, NormRegion, norm_of
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.report import Refusal

__all__ = ["Stream", "Value", "explore", "norm_axis", "read_along", "rms_axis", "spread_rawness"]

Value = tuple[Node, int]


@dataclass
class Stream:
    """One stream.

    Attributes:
        carries: values whose operator carries the map, with the operands that are in the stream
            (``values``) or computed from weights (``weights``).
        norms: norms that read a value along its channel axis, and do not mind the change.
        raw: values whose mean is wanted by somebody, with the reason.
        mutated: values in memory that the graph writes to, which are raw as well.
        parts: values whose channels are some of those of another value, which nothing else reads.
        centrings: values that the model centres itself, which carry the map like any other operator.
    """

    carries: dict[Value, Carries] = field(default_factory=dict)
    members: list[Value] = field(default_factory=list)
    norms: dict[Value, list[Node]] = field(default_factory=dict)
    raw: dict[Value, Refusal] = field(default_factory=dict)
    mutated: set[Value] = field(default_factory=set)
    operands: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    parts: dict[Value, Part] = field(default_factory=dict)
    centrings: set[Value] = field(default_factory=set)


def norm_axis(node: Node) -> Value | None:
    """The value and axis that a LayerNorm over one axis normalizes; None for any other node."""
    region = norm_of(node)
    return None if region is None or not region.spec.centred else read_along(node, region)


def rms_axis(node: Node) -> Value | None:
    """The value and axis that a plain RMSNorm over one axis normalizes; None for any other node."""
    region = norm_of(node)
    if region is None or region.spec.kind != "rms_norm" or not is_expressible(region.spec):
        return None
    return read_along(node, region)


def read_along(node: Node, region: NormRegion) -> Value | None:
    """The value and axis that a norm over one axis reads, whatever its kind; None over several."""
    if len(region.spec.dims) != 1:
        return None
    source = region.operands(node).source
    shape = shape_of(source)
    if shape is None or list(node.args).count(source) != 1:
        return None
    return source, len(shape) + region.spec.dims[0]


def explore(
    start: Value,
    weights: WeightValues,
    effects: Effects,
    reads: Callable[[Node], Value | None] = norm_axis,
    centres: bool = False,
) -> Stream:
    """The whole stream that contains ``start``.

    ``reads`` says of a norm which value it reads, where it does not mind the change; None for all else.
    ``centres`` says that the change is centring, which passes through a centring that the model wrote.
    """
    stream, queue, seen = Stream(), [start], {start}
    while queue:
        value = queue.pop()
        stream.members.append(value)
        if effects.is_written(value[0]):
            stream.raw[value] = _mutated(value[0])
            stream.mutated.add(value)
        neighbours = (*_backward(value, stream, weights, centres), *_forward(value, stream, reads, centres))
        for neighbour in neighbours:
            if neighbour not in seen:
                seen.add(neighbour)
                queue.append(neighbour)
    spread_rawness(stream)
    return stream


def _backward(value: Value, stream: Stream, weights: WeightValues, centres: bool) -> tuple[Value, ...]:
    part = part_read_apart(*value)
    if part is not None:
        stream.parts[value] = part
        return ()
    found = flow(*value)
    own = centred_by_hand(value[0]) if centres else None
    if own is not None and own[1] == value[1]:
        found = Carries((own,))
        stream.centrings.add(value)
    if not isinstance(found, Carries):
        return ()
    stream.carries[value] = found
    inside = tuple(o for o in found.operands if o[0] not in weights)
    stream.operands[value] = inside
    return inside


def _forward(
    value: Value, stream: Stream, reads: Callable[[Node], Value | None], centres: bool
) -> list[Value]:
    node, axis = value
    reached: list[Value] = []
    for user in node.users:
        if reads(user) == value:
            stream.norms.setdefault(value, []).append(user)
        elif not reads_only_type(user, node) and not (centres and is_own_mean(user, *value)):
            by_hand = centres and centred_by_hand(user) == value
            out = axis if by_hand else carried_axis(user, node, axis, (Centre(),))
            if out is None:
                stream.raw.setdefault(value, _raw_reader(user, node))
            else:
                reached.append((user, out))
    return reached


def spread_rawness(stream: Stream) -> None:
    """What a raw value is made of must be raw as well, also where it is computed from weights alone."""
    stack, members = list(stream.raw), set(stream.members)
    while stack:
        value = stack.pop()
        carried = stream.carries.get(value)
        for operand in carried.operands if carried is not None else ():
            if operand in members and operand not in stream.raw:
                stream.raw[operand] = stream.raw[value]
                stack.append(operand)


def _raw_reader(user: Node, node: Node) -> Refusal:
    if user.op == "output":
        return Refusal(
            "stream_is_output",
            f"{described(node)} is returned before it is normalized, so the caller would see other numbers",
            node.name, "do not return the hidden states, or accept that these norms stay",
        )  # fmt: skip
    if UNLIFTED in user.meta:
        return Refusal(
            "raw_reader",
            f"a norm that is not lifted ({user.meta[UNLIFTED]}) reads the values, mean included",
            user.name, "see the reason of that norm",
        )  # fmt: skip
    mixed = _mixed_channels(user)
    if mixed is not None:
        return mixed
    if norm_of(user) is not None:
        return Refusal(
            "raw_reader",
            f"{described(user)} reads the values too, and would give another result",
            user.name,
        )
    return Refusal(
        "raw_reader",
        f"{described(user)} reads the values before any norm does, mean included",
        user.name,
    )


def _mixed_channels(user: Node) -> Refusal | None:
    """The table's own reason, for operators that it knows and that still cannot carry the channels."""
    if user.target not in LAYOUT and not is_call(
        user, aten.dropout.default, aten.mul.Tensor, aten.add.Tensor
    ):
        return None
    for axis in reversed(range(rank_of(user))):
        found = flow(user, axis)
        if isinstance(found, Blocks):
            return found.refusal
        if isinstance(found, Scales):
            return Refusal(
                "channel_gate",
                f"{described(user)} multiplies each channel of the values by a factor of its own",
                user.name,
            )
    return None


def _mutated(node: Node) -> Refusal:
    return Refusal(
        "mutated", f"the graph writes in place to {described(node)}", node.name,
        "write the update out of place, e.g. `x = x + y` for `x += y`",
    )  # fmt: skip
