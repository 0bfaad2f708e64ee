"""A folded weight in blocks, so that only a part of a large one is ever there in float64.

A block is a range of the result along one axis. Walking back from the result, every step says which range of
its operands it needs: the same range, or the whole of one that is small. Where a step needs all of a large
source, as a mean along that axis does, another axis is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from normfuse.folding.recipe import FOLD, Recipe, run_exactly
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.torch_compat import outside_tracing

__all__ = ["BLOCK", "fold_blocks"]

#: Entries of the largest source that are held at once; in float64 they fit into a processor's caches.
BLOCK = 1 << 19

_ELEMENTWISE = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


class _WholeError(Exception):
    """A block needs the whole of a large source."""


class _Ranges:
    """Along which axis each step of a recipe is cut; None for what is needed as a whole."""

    def __init__(self, recipe: Recipe, sizes: Mapping[Node, int], axis: int) -> None:
        self.axes: dict[Node, int | None] = {}
        self._sizes = sizes
        result = recipe.body.output_node().args[0]
        assert isinstance(result, Node)
        self._cut(result, axis)

    def _cut(self, node: Node, axis: int | None) -> None:
        if axis is None and self._sizes.get(node, 0) > BLOCK:
            raise _WholeError
        if self.axes.setdefault(node, axis) != axis:
            raise _WholeError
        if node.op == "call_function":
            for operand, found in _needed(node, axis).items():
                self._cut(operand, found)


def _needed(node: Node, axis: int | None) -> dict[Node, int | None]:
    """The axis along which a step needs each operand cut when its result is cut along ``axis``."""
    if axis is None:
        is_shape_alone = is_call(node, aten.new_zeros.default)
        return {} if is_shape_alone else dict.fromkeys(node.all_input_nodes)
    found = next((rule(node, axis) for targets, rule in _RULES if is_call(node, *targets)), None)
    if found is None:
        raise _WholeError
    return found


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _elementwise(node: Node, axis: int) -> dict[Node, int | None]:
    rank, found = len(_shape(node)), dict[Node, int | None]()
    for operand in node.all_input_nodes:
        own = axis - (rank - len(_shape(operand)))
        found[operand] = own if own >= 0 and _shape(operand)[own] > 1 else None
    return found


def _same(node: Node, axis: int) -> dict[Node, int | None]:
    return dict.fromkeys(node.all_input_nodes, axis)


def _mean(node: Node, axis: int) -> dict[Node, int | None] | None:
    bound = bind(node)
    rank = len(_shape(bound["self"]))
    is_inside = axis in [d % rank for d in bound["dim"] or range(rank)]
    return None if is_inside or not bound["keepdim"] else {bound["self"]: axis}


def _permute(node: Node, axis: int) -> dict[Node, int | None]:
    source, dims = node.args[0], node.args[1]
    assert isinstance(source, Node)
    return {source: dims[axis] % len(dims)}  # type: ignore[index, arg-type, operator]


def _reshape(node: Node, axis: int) -> dict[Node, int | None] | None:
    """Where nothing but axes of one entry come or go."""
    (source,) = node.all_input_nodes
    given, made = _shape(source), _shape(node)
    if given == made:
        return {source: axis}
    if [n for n in given if n != 1] != [n for n in made if n != 1] or made[axis] == 1:
        return None
    position = sum(n != 1 for n in made[:axis])
    return {source: [i for i, n in enumerate(given) if n != 1][position]}


def _matmul(node: Node, axis: int) -> dict[Node, int | None] | None:
    left, right = node.args[:2]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    if len(_shape(left)) != 2:
        return None
    if axis == 0:
        return {left: 0, right: None}
    return {left: None, right: 1} if len(_shape(right)) == 2 else None


_RULES: tuple[tuple[Sequence[Any], Callable[[Node, int], dict[Node, int | None] | None]], ...] = (
    (_ELEMENTWISE, _elementwise),
    (CASTS, _same),
    ((aten.mean.dim,), _mean),
    ((aten.permute.default,), _permute),
    ((aten.reshape.default,), _reshape),
    ((aten.matmul.default,), _matmul),
)


def fold_blocks(
    recipe: Recipe, sources: Sequence[torch.Tensor], shape: Sequence[int]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The folded weight of this shape in blocks, each with its axis and its start, and not yet in its dtype.

    One block, along axis 0, where the sources are small or no axis can be cut.
    """
    placeholders = [n for n in recipe.body.nodes if n.op == "placeholder"]
    held = dict(zip(placeholders, sources, strict=True))
    largest = max((s.numel() for s in sources), default=0)
    cut = _cut_axis(recipe, {n: s.numel() for n, s in held.items()}, shape) if largest > BLOCK else None
    with outside_tracing(), torch.no_grad():
        if cut is None:
            yield 0, 0, recipe.compute(sources) if not shape else _block(recipe, held, {}, 0, shape[0])
            return
        axis, ranges = cut
        step = max(1, shape[axis] * BLOCK // largest)
        for start in range(0, shape[axis], step):
            yield axis, start, _block(recipe, held, ranges.axes, start, min(step, shape[axis] - start))


def _cut_axis(recipe: Recipe, sizes: Mapping[Node, int], shape: Sequence[int]) -> tuple[int, _Ranges] | None:
    for axis in range(len(shape)):
        try:
            return axis, _Ranges(recipe, sizes, axis)
        except _WholeError:
            continue
    return None


def _block(
    recipe: Recipe,
    held: Mapping[Node, torch.Tensor],
    axes: Mapping[Node, int | None],
    start: int,
    length: int,
) -> torch.Tensor:
    """The steps of a recipe, on ranges of its sources where there is an axis."""
    values: dict[Node, Any] = {}
    for node in recipe.body.nodes:
        axis = axes.get(node)
        if node.op == "placeholder":
            whole = held[node].detach()
            value = whole if axis is None else whole.narrow(axis, start, length)
            is_exact = all(FOLD in user.meta for user in node.users) and not _lends_shape(node)
            values[node] = value.double() if is_exact and value.is_floating_point() else value
        elif node.op == "get_attr":
            values[node] = getattr(recipe.root, str(node.target))
        elif node.op == "call_function":
            values[node] = _run(node, values, axis)
        else:
            result: torch.Tensor = values[node.args[0]]
            return result
    raise AssertionError("a recipe without a result")


def _lends_shape(node: Node) -> bool:
    return any(is_call(user, aten.new_zeros.default) for user in node.users)


def _run(node: Node, values: Mapping[Node, Any], axis: int | None) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    if axis is not None and is_call(node, aten.reshape.default):
        shape = [-1 if i == axis else n for i, n in enumerate(_shape(node))]
        args = (args[0], shape)
    if FOLD in node.meta:
        return run_exactly(node, args, kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]
