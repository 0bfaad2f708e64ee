"""Values that hold a part of another's channels: a range, or an axis that a reshape takes out of them.

    q = view(W x, [..., H, 3, d])[..., 0, :]      holds H runs of d channels, 3 d apart, of the H * 3 * d

So what the norm of a head reads is written by some rows of one weight. A map of the part is a map of the
whole: ``I (x) M (x) I`` in a range of the channels (``Spread``, ``Within``), and all other channels stay.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from normfuse.analysis.axis_ranges import (
    AxisRange,
    AxisRanges,
    has_channels,
    is_fixed,
    is_outermost,
    lifted,
    positions,
)
from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.flow import Carries
from normfuse.analysis.operator_table import flow
from normfuse.analysis.ranges import SPLITS, pieces_of
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.moves import RESHAPES, is_move
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import rank_of, same, shape_of

__all__ = ["Part", "part_of", "part_read_apart"]


@dataclass(frozen=True)
class Part:
    """A value's channels are some of those along ``axis`` of ``whole``."""

    whole: Node
    axis: int
    factors: AxisRanges

    def lifted(self, mapping: ChannelMap) -> ChannelMap:
        """The map of the whole that is ``mapping`` of the part, and leaves everything else as it is."""
        return lifted(mapping, self.factors)

    def is_read_apart(self, node: Node) -> bool:
        """Whether every other reader of the whole, but for those of ``node``, reads other channels."""
        own = set(positions(self.factors))
        regions = (_walk(value, None, self.whole) for value in _read_elsewhere(self.whole, node))
        return all(found is not None and own.isdisjoint(positions(found[1][self.axis])) for found in regions)


def part_of(node: Node, axis: int) -> Part | None:
    """Of which value's channels those along ``axis`` are a part; None where they are all of them."""
    found = _walk(node, axis, None)
    if found is None:
        return None
    whole, axes = found
    (place,) = [i for i, factors in enumerate(axes) if any(map(has_channels, factors))]
    own, others = axes[place], [f for i, factors in enumerate(axes) if i != place for f in factors]
    if (len(own) == 1 and own[0].length is None) or any(f.length is not None for f in others):
        return None
    return Part(whole, place, own) if is_fixed(own) and is_outermost(own) else None


def part_read_apart(node: Node, axis: int) -> Part | None:
    """The same, where nothing else reads these channels."""
    part = part_of(node, axis)
    return part if part is not None and part.is_read_apart(node) else None


def _read_elsewhere(whole: Node, node: Node) -> Iterator[Node]:
    """The values made of the whole, or of parts of it, that anything but a move reads."""
    stack = [whole]
    while stack:
        value = stack.pop()
        for user in value_readers(value):
            if user is node:
                continue
            if _goes_on(user, value):
                stack.append(user)
            else:
                yield value


def _goes_on(user: Node, value: Node) -> bool:
    taken = is_move(user) or is_call(user, aten.select.int, aten.slice.Tensor, aten.unbind.int, *SPLITS)
    return (taken or user.target is operator.getitem) and user.args[0] is value


def _walk(node: Node, axis: int | None, end: Node | None) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    """Back through moves and selections, to ``end`` or as far as they go; what each axis there holds."""
    shape = shape_of(node)
    if shape is None:
        return None
    axes: tuple[AxisRanges, ...] = tuple((AxisRange(s, holds=i == axis),) for i, s in enumerate(shape))
    while node is not end:
        step = _back(node, axes)
        if step is None:
            return None if end is not None else (node, axes)
        node, axes = step
    return node, axes


def _back(node: Node, axes: tuple[AxisRanges, ...]) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    if is_call(node, *RESHAPES):
        return _before_reshape(node, axes)
    if is_move(node):
        return _moved(node, node.args[0], axes, {})
    if is_call(node, aten.select.int):
        return _selected(node, bind(node)["self"], bind(node)["dim"], bind(node)["index"], axes)
    source = node.args[0] if node.target is operator.getitem else None
    if isinstance(source, Node) and is_call(source, aten.unbind.int):
        return _selected(source, bind(source)["self"], bind(source)["dim"], node.args[1], axes)
    return _before_range(node, axes)


def _selected(
    node: Node, source: object, dim: int, index: object, axes: tuple[AxisRanges, ...]
) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    shape = shape_of(source)
    if shape is None or not isinstance(index, int) or not isinstance(shape[dim], int):
        return None
    dim = dim % len(shape)
    made = AxisRange(1) if shape[dim] == 1 else AxisRange(shape[dim], index % shape[dim], 1)
    return _moved(node, source, axes, {dim: (made,)})


def _moved(
    node: Node, source: object, axes: tuple[AxisRanges, ...], held: dict[int, AxisRanges]
) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    """Each axis where the operator table says that it comes from; those of a list are those of its parts."""
    for axis, factors in enumerate(axes):
        found = flow(node, axis)
        if not isinstance(found, Carries) or len(found.operands) != 1:
            return None
        held[found.operands[0][1]] = factors
    if not isinstance(source, Node) or len(held) != rank_of(source):
        return None
    return source, tuple(held[axis] for axis in range(len(held)))


def _before_range(node: Node, axes: tuple[AxisRanges, ...]) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    """A range of one axis."""
    for axis, factors in enumerate(axes):
        pieces = pieces_of(node, axis)
        if len(pieces) != 1 or is_call(node, aten.cat.default, aten.concat.default):
            continue
        (piece,) = pieces
        size, whole = (shape_of(piece.operand) or ())[axis], len(factors) == 1 and factors[0].length is None
        inner = () if whole else factors
        made = (AxisRange(size, piece.inner, piece.length, inner, holds=whole and factors[0].holds),)
        kept = factors if size == piece.length else made
        return piece.operand, (*axes[:axis], kept, *axes[axis + 1 :])
    return None


def _before_reshape(node: Node, axes: tuple[AxisRanges, ...]) -> tuple[Node, tuple[AxisRanges, ...]] | None:
    source = node.args[0]
    before, after, made = shape_of(source), shape_of(node), list[AxisRanges]()
    if before is None or after is None or not isinstance(source, Node):
        return None
    place = 0
    for first, size in enumerate(before):
        if len(made) > first:
            continue
        stop = _taken_apart(size, after, place)
        if stop is not None:
            held = [f for factors in axes[place:stop] for f in factors if not same(f.size, 1)]
            made.append(tuple(held) or (AxisRange(size),))
            place = stop
            continue
        joined = _taken_apart(after[place], before, first) if place < len(after) else None
        if joined is None or any(has_channels(f) or f.length is not None for f in axes[place]):
            return None
        made += [(AxisRange(one),) for one in before[first:joined]]
        place += 1
    left = [f for factors in axes[place:] for f in factors]
    if any(not same(f.size, 1) or f.length is not None for f in left):
        return None
    return source, tuple(made)


def _taken_apart(size: Any, sizes: Sequence[Any], start: int) -> int | None:
    """Where the axes from ``start`` end that hold as many elements as one of this size."""
    count: Any = 1
    for stop in range(start, len(sizes) + 1):
        if same(count, size):
            return stop
        if stop < len(sizes):
            count = count * sizes[stop]
    return None
