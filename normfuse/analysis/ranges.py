"""Operators that split or join the channels: which range of which operand goes where.

A linear map that mixes channels stops there. A map that treats each channel by itself goes on, as the
map of a range, or with every other channel left as it is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch.fx import Node

from normfuse.analysis.channel_map import ChannelMap, Within
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.readers import value_readers
from normfuse.ir.sizes import rank_of, shape_of, static_size

__all__ = ["RANGES", "SPLITS", "Piece", "narrowed", "pieces_of", "read_apart", "widened"]

Maps = tuple[ChannelMap, ...]
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default)

#: Operators that split or join.
RANGES = (*SPLITS, aten.slice.Tensor, aten.cat.default, aten.concat.default)


@dataclass(frozen=True)
class Piece:
    """``length`` channels from ``inner`` of an operand lie from ``outer`` in the result, on the same axis."""

    operand: Node
    inner: int
    outer: int
    length: int


def pieces_of(node: Node, axis: int) -> tuple[Piece, ...]:
    """The ranges that an operator selects or joins along an axis; none where it is no such operator."""
    if is_call(node, aten.slice.Tensor):
        return _slice(node, bind(node), axis)
    if is_call(node, aten.cat.default, aten.concat.default):
        return _cat(node, bind(node), axis)
    if node.target is operator.getitem and is_call(node.args[0], *SPLITS):
        return _part(node, axis)
    return ()


def _wrap(dim: int, node: object) -> int:
    return dim + rank_of(node) if dim < 0 else dim


def _slice(node: Node, bound: dict[str, Any], axis: int) -> tuple[Piece, ...]:
    start, length = bound["start"] or 0, static_size(node, axis)
    width = static_size(bound["self"], axis)
    plain = bound["step"] == 1 and isinstance(start, int) and length is not None and width is not None
    if _wrap(bound["dim"], node) != axis or not plain:
        return ()
    assert length is not None
    assert width is not None
    return (Piece(bound["self"], max(start + width, 0) if start < 0 else start, 0, length),)


def _cat(node: Node, bound: dict[str, Any], axis: int) -> tuple[Piece, ...]:
    parts = list(bound["tensors"])
    sizes = [static_size(p, axis) if rank_of(p) == rank_of(node) else None for p in parts]
    if _wrap(bound["dim"], node) != axis or None in sizes or len(set(parts)) < len(parts):
        return ()
    widths = [s for s in sizes if s is not None]
    starts = [0, *accumulate(widths)]
    return tuple(Piece(p, 0, at, w) for p, at, w in zip(parts, starts, widths, strict=False))


def _part(node: Node, axis: int) -> tuple[Piece, ...]:
    """One of the parts of a split; sizes are those of the parts before it."""
    split, index = node.args
    assert isinstance(split, Node)
    bound = bind(split)
    values = split.meta["val"]
    if _wrap(bound["dim"], bound["self"]) != axis or not isinstance(index, int):
        return ()
    sizes = [value.shape[axis] for value in values]
    if not all(isinstance(size, int) for size in sizes) or shape_of(bound["self"]) is None:
        return ()
    index = index % len(sizes)
    return (Piece(bound["self"], sum(sizes[:index]), 0, sizes[index]),)


def read_apart(whole: Node, axis: int, node: Node, piece: Piece) -> bool:
    """Whether every other reader of a value reads other channels than ``node`` does."""
    readers = [r for user in value_readers(whole) for r in (user.users if is_call(user, *SPLITS) else [user])]
    others = [pieces_of(reader, axis) for reader in readers if reader is not node]
    return all(len(found) == 1 and found[0].operand is whole and _apart(found[0], piece) for found in others)


def _apart(a: Piece, b: Piece) -> bool:
    return a.inner + a.length <= b.inner or b.inner + b.length <= a.inner


def narrowed(maps: Maps, start: int, length: int) -> Maps:
    """The maps of a range of the channels."""
    parts = (m.narrow(start, length) for m in maps)
    return tuple(m for m in parts if m is not None)


def widened(maps: Maps, start: int, length: int) -> Maps:
    """The maps on a range of more channels, and nothing on the others."""
    return tuple(Within(m, start, length) for m in maps)
