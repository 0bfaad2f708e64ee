"""Views that have several names or are taken several times, and casts that are made several times.

    movedim(x, 1, -1) -> permute(x, ...)           narrow(x, 1, 2, 3) -> slice(x, 1, 2, 5)
    f(transpose(x), transpose(x)) -> f(y, y),      y = transpose(x)
    f(to(x, bfloat16), to(x, bfloat16)) -> f(y, y),    which autocast makes for each product

Bitwise neutral.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.effects import Effects, is_returned
from normfuse.ir.moves import TURNS
from normfuse.ir.sizes import rank_of

__all__ = ["equal_views", "merge_views", "name_view"]

_MOVED = (aten.movedim.int, aten.movedim.intlist)
_VIEWS = (*TURNS, aten.view.default, aten.unsqueeze.default)


def name_view(node: Node) -> None:
    """Call a view by the name of the operator that other passes know."""
    if is_call(node, *_MOVED):
        node.target, node.args, node.kwargs = aten.permute.default, (node.args[0], _order(node)), {}
    elif is_call(node, aten.narrow.default):
        bound = bind(node)
        start, length = bound["start"], bound["length"]
        if isinstance(start, int) and isinstance(length, int) and start >= 0:
            args = (bound["self"], bound["dim"], start, start + length)
            node.target, node.args, node.kwargs = aten.slice.Tensor, args, {}


def _order(node: Node) -> list[int]:
    bound, rank = bind(node), rank_of(node)
    pair = (bound["source"], bound["destination"])
    moved = [axes if isinstance(axes, (list, tuple)) else [axes] for axes in pair]
    places = {destination % rank: source % rank for source, destination in zip(*moved, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in places.values())
    return [places[axis] if axis in places else next(rest) for axis in range(rank)]


def merge_views(graph: Graph) -> None:
    """Have readers of equal views of one value read the first; gradients would be summed in another order."""
    known, effects = dict[Any, Node](), Effects(graph)
    for node in list(graph.nodes):
        if not is_call(node, *_VIEWS) and (not is_call(node, aten.to.dtype) or effects.is_written(node)):
            continue
        first = known.setdefault((node.target, *map(str, bind(node).values())), node)
        if first is not node and not (is_returned(first) or is_returned(node)):
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def equal_views(graph: Graph) -> dict[Node, Node]:
    """The first of equal views of a value, for each of the others; views of equal views are equal."""
    known: dict[Any, Node] = {}
    first: dict[Node, Node] = {}
    for node in graph.nodes:
        if is_call(node, *_VIEWS):
            given = (first.get(value, value) for value in bind(node).values())
            earlier = known.setdefault((node.target, *map(str, given)), node)
            if earlier is not node:
                first[node] = earlier
    return first
