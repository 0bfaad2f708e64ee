"""What a value adds to itself per channel, followed as numbers of channels through operators that move axes.

    x[b, t, c] + s[c]   =>   heads[b, h, t, e] + s[places[0, h, 0, e]]

Where :class:`normfuse.ir.moves.Axes` follows whole axes, this follows the entries of one, which heads cut
into several. Along an axis of which ``places`` has size 1 a value adds the same everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from normfuse.analysis.ranges import SPLITS, pieces_of
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.emit import call
from normfuse.ir.moves import COPIES, RESHAPES, TURNS
from normfuse.ir.sizes import rank_of, same_product, shape_of, static_size
from normfuse.torch_compat import outside_tracing

__all__ = ["every_channel", "gathered", "moved", "runs_of", "varying"]

_Run = tuple[slice, slice]
#: Channels of one position, and of some more that a reshape joins them with; not those of all tokens.
_MOST = 2**22


def every_channel(rank: int, width: int) -> Tensor:
    """The places of a value whose last axis is that of the channels."""
    with outside_tracing():
        return torch.arange(width).reshape([1] * (rank - 1) + [width])


def varying(places: Tensor) -> list[int]:
    """The axes along which not everything is the same."""
    return [axis for axis, size in enumerate(places.shape) if size != 1]


def moved(places: Tensor, value: Node, user: Node) -> Tensor | None:
    """The places behind an operator that moves, selects or repeats entries of ``value``; else None.

    None also where it selects no channel at all, as partial rotary embeddings do that turn every channel.
    """
    with outside_tracing():
        found = _moved(places, value, user)
        return None if found is None or not found.numel() else _once(found)


def _moved(places: Tensor, value: Node, user: Node) -> Tensor | None:
    if is_call(user, *COPIES):
        return places
    if is_call(user, *TURNS):
        return _turned(places, bind(user))
    if is_call(user, *RESHAPES) and user.args[0] is value:
        return _reshaped(places, shape_of(value) or (), shape_of(user) or ())
    if is_call(user, aten.expand.default):
        return places.reshape([1] * (rank_of(user) - places.dim()) + list(places.shape))
    if is_call(user, aten.repeat_interleave.self_int):
        return _repeated(places, bind(user))
    if is_call(user, aten.select.int):
        return _selected(places, bind(user)["dim"], bind(user)["index"])
    if user.target is operator.getitem and is_call(user.args[0], aten.unbind.int):
        return _selected(places, bind(user.args[0])["dim"], user.args[1])  # type: ignore[arg-type]
    return _cut(places, user)


def _turned(places: Tensor, bound: dict[str, Any]) -> Tensor:
    if "dims" in bound:
        return places.permute(bound["dims"])
    return places.transpose(bound.get("dim0", -2), bound.get("dim1", -1))


def _repeated(places: Tensor, bound: dict[str, Any]) -> Tensor | None:
    times, dim = bound["repeats"], bound["dim"]
    if dim is None or not isinstance(times, int):
        return None
    return places.repeat_interleave(times, dim)


def _selected(places: Tensor, dim: int, index: Any) -> Tensor | None:
    if places.shape[dim] == 1:
        return places.select(dim, 0)
    return places.select(dim, index) if isinstance(index, int) else None


def _cut(places: Tensor, user: Node) -> Tensor | None:
    """A range of an axis; along one where all is the same, no matter which."""
    is_part = user.target is operator.getitem and is_call(user.args[0], *SPLITS)
    if not (is_part or is_call(user, aten.slice.Tensor)):
        return None
    dim = bind(user.args[0] if is_part else user)["dim"] % places.dim()  # type: ignore[arg-type]
    if places.shape[dim] == 1:
        return places
    found = pieces_of(user, dim)
    return places.narrow(dim, found[0].inner, found[0].length) if found else None


def _reshaped(places: Tensor, before: Sequence[Any], after: Sequence[Any]) -> Tensor | None:
    """Runs of axes become other runs of as many elements."""
    whole, made = list(places.shape), [1] * len(after)
    runs = runs_of(before, after)
    for old, new in runs or ():
        if all(size == 1 for size in places.shape[old]):
            continue
        if not all(isinstance(size, int) for size in (*before[old], *after[new])):
            return None
        whole[old], made[new] = list(before[old]), list(after[new])
    return None if runs is None or prod(whole) > _MOST else places.expand(whole).reshape(made)


def runs_of(before: Sequence[Any], after: Sequence[Any]) -> list[_Run] | None:
    """The shortest runs of the axes of two shapes that hold provably as many elements; None without such."""
    found: list[_Run] = []
    at, to = 0, 0
    while at < len(before) or to < len(after):
        run = next(_matching(before, after, at, to), None)
        if run is None:
            return None
        found.append(run)
        at, to = run[0].stop, run[1].stop
    return found


def _matching(before: Sequence[Any], after: Sequence[Any], at: int, to: int) -> Iterator[_Run]:
    ends = product(range(at, len(before) + 1), range(to, len(after) + 1))
    for end, other in sorted(ends, key=sum):
        if end + other > at + to and same_product(before[at:end], after[to:other]):
            yield slice(at, end), slice(to, other)


def _once(places: Tensor) -> Tensor:
    """Along an axis where everything is the same, one of it."""
    for axis in varying(places):
        first = places.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(places), places):
            places = first
    return places


def gathered(graph: Graph, vector: Node, places: Sequence[int]) -> Node:
    """The entries of a vector at these places, range by range: heads that share values follow one another."""
    made = call(graph, aten.reshape.default, vector, [-1])
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1), len(places)]
    ranges = [(places[a], places[b - 1] + 1) for a, b in pairwise(starts)]
    if ranges == [(0, static_size(made, 0))]:
        return made
    return call(graph, aten.cat.default, [call(graph, aten.slice.Tensor, made, 0, *r) for r in ranges])
