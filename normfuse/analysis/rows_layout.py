"""Table rows of operators that move, select, repeat or join positions.

They carry a map as long as the channel axis itself stays whole; a reshape, concatenation, split
or shift along the channels blocks it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.fx import Node

from normfuse.analysis.flow import Blocks, Carries, Flow, Shift
from normfuse.analysis.operator_table import ROWS, block, flow, row, unknown
from normfuse.ir.calls import aten, is_call
from normfuse.ir.location import described
from normfuse.ir.moves import RESHAPES
from normfuse.ir.sizes import rank_of, same, same_product, shape_of, tensor_of

__all__ = ["LAYOUT", "MASKS", "SPLITS"]

#: Operators that return a list of parts of their input.
SPLITS = (
    aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default, aten.unbind.int,
)  # fmt: skip
#: Indices of these types choose by mask.
MASKS = (torch.bool, torch.uint8)


def _mixed(node: Node) -> Blocks:
    return block(
        node, "channel_mix",
        f"{described(node)} splits, joins or reorders the channels, which changes the mean over them",
    )  # fmt: skip


def _carries(*operands: tuple[Node, int]) -> Carries:
    """What moves values about moves a shift along with them."""
    return Carries(operands, shift=Shift.EVERYWHERE)


def _wrap(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


@row(*RESHAPES)
def _reshape(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """The channels stay whole when as many elements lie before and after them as there did.

    A reshape keeps the number of all elements, so what holds on one side holds on the other.
    """
    source = node.args[0]
    before, after = shape_of(source), shape_of(node)
    if before is None or after is None or not isinstance(source, Node) or same(after[axis], 1):
        return _mixed(node)
    for dim, size in enumerate(before):
        sides = ((before[dim + 1 :], after[axis + 1 :]), (before[:dim], after[:axis]))
        if same(size, after[axis]) and any(same_product(*side) for side in sides):
            return _carries((source, dim))
    return _mixed(node)


@row(aten.permute.default)
def _permute(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return _carries((bound["self"], _wrap(bound["dims"][axis], rank_of(node))))


@row(aten.transpose.int, aten.mT.default)
def _transpose(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    rank = rank_of(node)
    a, b = _wrap(bound.get("dim0", -2), rank), _wrap(bound.get("dim1", -1), rank)
    return _carries((bound["self"], {a: b, b: a}.get(axis, axis)))


@row(aten.t.default, aten.numpy_T.default)
def _flip(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    return _carries((bound["self"], rank_of(node) - 1 - axis))


@row(aten.movedim.int)
def _movedim(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    rank = rank_of(node)
    order = [d for d in range(rank) if d != _wrap(bound["source"], rank)]
    order.insert(_wrap(bound["destination"], rank), _wrap(bound["source"], rank))
    return _carries((bound["self"], order[axis]))


@row(aten.expand.default, aten.expand_as.default)
def _expand(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    source = bound["self"]
    dim = axis - rank_of(node) + rank_of(source)
    if dim < 0 or not same((shape_of(source) or ())[dim], (shape_of(node) or ())[axis]):
        return _mixed(node)
    return _carries((source, dim))


@row(aten.repeat.default)
def _repeat(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    dim = axis - rank_of(node) + rank_of(bound["self"])
    return _carries((bound["self"], dim)) if dim >= 0 and bound["repeats"][axis] == 1 else _mixed(node)


@row(aten.select.int)
def _select(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    dim = _wrap(bound["dim"], rank_of(bound["self"]))
    return _carries((bound["self"], axis + 1 if axis >= dim else axis))


@row(
    aten.slice.Tensor, aten.index_select.default, aten.roll.default, aten.flip.default,
    aten.narrow.default, aten.repeat_interleave.self_int,
)  # fmt: skip
def _along(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Anything that happens along other axes than the channels."""
    dims = bound.get("dims", bound.get("dim"))
    touched: list[Any] = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    rank = rank_of(node)
    if not touched or None in touched:
        return _mixed(node)
    if axis not in [_wrap(d, rank) for d in touched]:
        return _carries((bound["self"], axis))
    whole = node.target is aten.slice.Tensor and bound["step"] == 1
    return _carries((bound["self"], axis)) if whole and _keeps_axis(node, axis) else _mixed(node)


def _keeps_axis(node: Node, axis: int) -> bool:
    before, after = shape_of(node.args[0]), shape_of(node)
    return before is not None and after is not None and same(before[axis], after[axis])


@row(aten.cat.default, aten.concat.default, aten.stack.default)
def _cat(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    parts, rank = list(bound["tensors"]), rank_of(node)
    joined = _wrap(bound["dim"], rank)
    if joined == axis:
        return _mixed(node)
    stacked = node.target is aten.stack.default
    ranks = {rank_of(p) for p in parts}
    if ranks != {rank - 1 if stacked else rank}:
        return _mixed(node)
    inner = axis - 1 if stacked and axis > joined else axis
    return _carries(*((p, inner) for p in parts))


@row(aten.pad.default, aten.constant_pad_nd.default)
def _pad(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Zeros around the tokens are zero after a linear map as well, but not after a shift."""
    padding = list(bound["pad"])
    from_end = rank_of(node) - 1 - axis
    touched = any(p != 0 for p in padding[2 * from_end : 2 * from_end + 2])
    constant = bound.get("mode", "constant") == "constant"
    if touched or (constant and bound["value"] not in (None, 0, 0.0)):
        return _mixed(node)
    adds_zeros = constant and any(not isinstance(p, int) or p > 0 for p in padding)
    return Carries(((bound["self"], axis),)) if adds_zeros else _carries((bound["self"], axis))


@row(aten.index.Tensor)
def _index(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """Advanced indexing of some axes, by positions of any rank or by masks; the others stay whole."""
    dim = _after_indexing(rank_of(bound["self"]), [tensor_of(i) for i in bound["indices"]])[axis]
    return _mixed(node) if dim is None else _carries((bound["self"], dim))


def _after_indexing(rank: int, indices: Sequence[torch.Tensor | None]) -> list[int | None]:
    """For each axis of the result the source's axis that it is; None for those that indices make.

    These come where the first indexed axis was; at the front, when other axes lie between indexed ones. A
    mask indexes as many axes as it has.
    """
    ranks = [r for t in indices for r in _index_ranks(t)]
    given = [dim for dim, made in enumerate(ranks) if made is not None]
    kept: list[int | None] = [dim for dim in range(rank) if dim not in given]
    gathered: list[int | None] = [None] * max((made for made in ranks if made is not None), default=0)
    apart = any(after - before > 1 for before, after in pairwise(given))
    start = 0 if apart or not given else given[0]
    return [*kept[:start], *gathered, *kept[start:]]


def _index_ranks(index: torch.Tensor | None) -> list[int | None]:
    """For each axis that an index stands for how many axes it makes; None where it keeps the axis."""
    if index is None:
        return [None]
    return [1] * index.dim() if index.dtype in MASKS else [index.dim()]


@row(*SPLITS)
def _split(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """A list of parts, whose axes are counted as in each part."""
    dim = _wrap(bound["dim"], rank_of(bound["self"]))
    if node.target is aten.unbind.int:
        return _carries((bound["self"], axis + 1 if axis >= dim else axis))
    return _mixed(node) if axis == dim else _carries((bound["self"], axis))


@row(operator.getitem)
def _part(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    """One of the parts into which a value was split."""
    parts = node.args[0]
    assert isinstance(parts, Node)
    split = flow(parts, axis) if is_call(parts, *SPLITS) else unknown(parts)
    return split if isinstance(split, Blocks) else _carries((parts, axis))


#: Every operator that only moves, selects or joins values.
LAYOUT = frozenset(target for target, made in ROWS.items() if made.__module__ == __name__)
