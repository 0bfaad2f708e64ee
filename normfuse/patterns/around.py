"""Moves of axes around a norm that undo each other belong to it.

    norm(x.transpose(1, 2)).transpose(1, 2)    scales and shifts along the last axis of x

So a norm that vanishes takes them along, also where something is made contiguous in between.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch.fx import Node

from normfuse.ir.calls import aten, is_call, readers
from normfuse.ir.changed import changed
from normfuse.ir.moves import Axes, is_move
from normfuse.ir.sizes import is_row_major, lies_alike, same_shape, tensor_of
from normfuse.patterns.candidate import Candidate

__all__ = ["around", "order_is_free"]

#: What these return lies in an order of its own.
_PRODUCTS = (
    aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.matmul.default,
)  # fmt: skip
_VIEWS_OF_AN_ORDER = (aten.view.default, aten.view_as.default, aten._unsafe_view.default)


def around(norm: Candidate, taken: set[Node]) -> Candidate:
    """A norm with stored statistics, grown by the moves around it that leave each axis in its place.

    The moves behind it are added to ``taken``; those that belong to a norm before it are left to that.
    """
    if norm.refusal is not None or norm.spec.statistics == "input":
        return norm
    roots = [norm.root, *_moves_behind(norm.root)]
    for moves in _moves_before(norm.operands.source, taken):
        for length in range(len(roots), 1, -1):
            grown = _grown(norm, moves, roots[:length])
            if grown is not None:
                taken.update(roots[1:length])
                return grown
    return norm


def _moves_behind(root: Node) -> Iterator[Node]:
    """Each move that alone reads the one before it."""
    while len(found := readers(root)) == 1 and is_move(found[0]):
        root = found[0]
        yield root


def _moves_before(source: Node, taken: Container[Node]) -> list[list[Node]]:
    """The moves that end with ``source``, from the value that they begin with; the longest chain first."""
    chain = [source]
    while is_move(chain[0]) and chain[0] not in taken and isinstance(chain[0].args[0], Node):
        chain.insert(0, chain[0].args[0])
    return [chain[begin:] for begin in range(len(chain))]


def _grown(norm: Candidate, before: list[Node], roots: list[Node]) -> Candidate | None:
    begin, end = before[0], roots[-1]
    axes = _behind(Axes.of(begin), before[1:])
    if axes is None:
        return None
    rank, channels = len(axes.first), _channels(axes, norm)
    axes = _behind(axes, roots[1:])
    if axes is None or channels is None or not (axes.are_back and same_shape(begin, end)):
        return None
    if not _may_lie_as(begin, end):
        return None
    dims = tuple(d for d in range(-rank, 0) if d + rank != channels)
    return norm.grown(end, changed(norm.operands, source=begin), dims=dims)


def _behind(axes: Axes | None, moves: list[Node]) -> Axes | None:
    for move in moves:
        axes = None if axes is None else axes.behind(move)
    return axes


def _channels(axes: Axes, norm: Candidate) -> int | None:
    """Which dimension of the value that the moves begin with has the channels of the norm, and no more."""
    channels = [d for d in range(-len(axes.dims), 0) if d not in norm.spec.dims]
    return axes.source_of(channels[0]) if len(channels) == 1 else None


def _may_lie_as(begin: Node, end: Node) -> bool:
    """Whether the value that moves begin with can stand for the one that they end with."""
    before, after = tensor_of(begin), tensor_of(end)
    if before is None or after is None:
        return False
    return lies_alike(begin, end) or is_row_major(after) or order_is_free(end)


def order_is_free(node: Node) -> bool:
    """Whether a value that lies in another order may stand for ``node``.

    It may where products read it in the end: what they return is in an order of its own.
    """
    seen, stack = {node}, [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "output" or is_call(user, aten.as_strided.default, *_VIEWS_OF_AN_ORDER):
                return False
            if user not in seen and not is_call(user, *_PRODUCTS):
                seen.add(user)
                stack.append(user)
    return True
