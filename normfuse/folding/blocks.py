"""A folded weight in blocks, so that only a part of a large one is ever there in float64.

A block is a range of the result along one axis. Walking back from the result, every step says which range of
its operands it needs: the same range, or the whole of one that is small. A mean along that axis is added up
over all blocks first. Where a step needs all of a large source for another reason, another axis is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from normfuse.folding.recipe import FOLD, Recipe, run_exactly
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.torch_compat import outside_tracing

__all__ = ["BLOCK", "PART", "fold_blocks"]

#: Entries of what may be needed as a whole; a few MiB in float64.
BLOCK = 1 << 20
#: Entries of the largest source that are held at once: in float64 they stay in the caches.
PART = 1 << 18

_ELEMENTWISE = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_MOVES = (aten.reshape.default, aten.permute.default)


class _WholeError(Exception):
    """A block needs the whole of a large source."""


class _Ranges:
    """Along which axis each step of a recipe is cut; None for what is needed as a whole.

    ``means`` are those among the latter that are taken along the axis of the blocks, with that axis.
    """

    def __init__(self, recipe: Recipe, sizes: Mapping[Node, int], axis: int, extent: int) -> None:
        self.axes: dict[Node, int | None] = {}
        self.means: dict[Node, int] = {}
        self._sizes, self._extent = sizes, extent
        result = recipe.body.output_node().args[0]
        assert isinstance(result, Node)
        self._cut(result, axis)

    def _cut(self, node: Node, axis: int | None) -> None:
        if axis is None and self._sizes.get(node, 0) > BLOCK:
            raise _WholeError
        if self.axes.setdefault(node, axis) != axis:
            raise _WholeError
        along = _mean_along(node) if axis is None else None
        if along is not None and _shape(node.args[0])[along] == self._extent > 1:
            self.means[node] = along
            self._cut(node.args[0], along)  # type: ignore[arg-type]
        elif node.op == "call_function":
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


def _mean_along(node: Node) -> int | None:
    """The one axis along which a marked step takes a mean and keeps it."""
    if not is_call(node, aten.mean.dim) or FOLD not in node.meta:
        return None
    bound = bind(node)
    dims = [d % len(_shape(bound["self"])) for d in bound["dim"] or ()]
    return dims[0] if len(dims) == 1 and bound["keepdim"] and bound["dtype"] is None else None


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
    bound = bind(node)
    return {bound["self"]: bound["dims"][axis] % len(bound["dims"])}


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
) -> Generator[tuple[int, int, torch.Tensor], None, None]:
    """The folded weight of this shape in blocks, each with its axis and its start, and not yet in its dtype.

    One block, along axis 0, where the sources are small or no axis can be cut. A block is good until the next
    one is asked for, which is computed in the same memory.
    """
    placeholders = [n for n in recipe.body.nodes if n.op == "placeholder"]
    held = dict(zip(placeholders, sources, strict=True))
    largest = max((s.numel() for s in sources), default=0)
    is_large = largest > min(PART, BLOCK)
    cut = _cut_axis(recipe, {n: s.numel() for n, s in held.items()}, shape) if is_large else None
    with outside_tracing(), torch.no_grad():
        if cut is None:
            yield 0, 0, recipe.compute(sources) if not shape else _Blocks(recipe, held, {}).at(0, shape[0])
            return
        axis, ranges = cut
        step = max(1, shape[axis] * min(PART, BLOCK) // largest)
        parts = [(start, min(step, shape[axis] - start)) for start in range(0, shape[axis], step)]
        blocks = _Blocks(recipe, held, ranges.axes)
        for mean, along in ranges.means.items():
            blocks.add_up(mean, along, parts)
        for start, length in parts:
            yield axis, start, blocks.at(start, length)


def _cut_axis(recipe: Recipe, sizes: Mapping[Node, int], shape: Sequence[int]) -> tuple[int, _Ranges] | None:
    for axis in range(len(shape)):
        try:
            return axis, _Ranges(recipe, sizes, axis, shape[axis])
        except _WholeError:
            continue
    return None


class _Blocks:
    """The steps of a recipe, on ranges of its sources where there is an axis.

    Each step has memory of its own for all blocks: to ask the system for it takes longer than the step. The
    product of two entries of half precision is exact in float32, which is as good as float64 then and faster.
    """

    def __init__(
        self, recipe: Recipe, held: Mapping[Node, torch.Tensor], axes: Mapping[Node, int | None]
    ) -> None:
        self._recipe, self._held, self._axes = recipe, held, axes
        self._memory: dict[Node, torch.Tensor] = {}
        self._values: dict[Node, Any] = {}
        self._wide = torch.float32 if _is_product(recipe, held.values()) else torch.float64

    def add_up(self, mean: Node, along: int, parts: Sequence[tuple[int, int]]) -> None:
        """A mean over all blocks, which the steps behind it read as a whole."""
        operand = mean.args[0]
        assert isinstance(operand, Node)
        total: torch.Tensor | None = None
        for start, length in parts:
            found = self._up_to(operand, start, length).sum(along, keepdim=True, dtype=torch.float64)
            total = found if total is None else total.add_(found)
        assert total is not None
        self._values[mean] = total / sum(length for _, length in parts)

    def at(self, start: int, length: int) -> torch.Tensor:
        """The block of so many entries along the axis."""
        result = self._recipe.body.output_node().args[0]
        assert isinstance(result, Node)
        return self._up_to(result, start, length)

    def _up_to(self, last: Node, start: int, length: int) -> torch.Tensor:
        for node in self._recipe.body.nodes:
            axis = self._axes.get(node)
            if axis is not None or node not in self._values:
                self._values[node] = self._value(node, axis, start, length)
            if node is last:
                break
        found: torch.Tensor = self._values[last]
        return found

    def _value(self, node: Node, axis: int | None, start: int, length: int) -> Any:
        if node.op == "call_function":
            return self._run(node, axis)
        if node.op == "get_attr":
            return getattr(self._recipe.root, str(node.target))
        value = self._held[node].detach()
        return self._read(node, value if axis is None else value.narrow(axis, start, length))

    def _read(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """A source, or a range of it; in float64 where nothing else reads it."""
        is_exact = all(FOLD in user.meta for user in node.users)
        if not (is_exact and value.is_floating_point()) or _lends_shape_alone(node):
            return value
        return self._room(node, value.shape).copy_(value)

    def _run(self, node: Node, axis: int | None) -> Any:
        given: Any = map_arg((node.args, node.kwargs), self._values.__getitem__)
        args, kwargs = given
        if axis is not None and is_call(node, aten.reshape.default):
            args = (args[0], [-1 if i == axis else n for i, n in enumerate(_shape(node))])
        if FOLD not in node.meta or is_call(node, *_MOVES):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if is_call(node, *_ELEMENTWISE) and not kwargs and self._are_wide(args):
            shape = torch.broadcast_shapes(*(a.shape for a in args))
            return _into(node, args, self._room(node, shape))
        return run_exactly(node, args, kwargs)

    def _are_wide(self, args: Any) -> bool:
        return len(args) == 2 and all(isinstance(a, torch.Tensor) and a.dtype == self._wide for a in args)

    def _room(self, node: Node, shape: Sequence[int]) -> torch.Tensor:
        """Memory for a wide value; that of the last block where it is large enough."""
        size = math.prod(shape)
        held = self._memory.get(node)
        if held is None or held.numel() < size:
            held = self._memory[node] = torch.empty(size, dtype=self._wide)
        return held[:size].view(shape)


def _into(node: Node, args: Any, room: torch.Tensor) -> torch.Tensor:
    """An elementwise step whose result is written to memory that is there."""
    target: Any = node.target
    made: torch.Tensor = target.overloadpacket.out(*args, out=room)
    return made


def _is_product(recipe: Recipe, sources: Iterable[torch.Tensor]) -> bool:
    """Whether nothing is done but to multiply two entries of half precision, once."""
    steps = [n for n in recipe.body.nodes if n.op == "call_function" and not is_call(n, *_MOVES, *CASTS)]
    is_half = all(s.dtype in (torch.bfloat16, torch.float16) for s in sources)
    return is_half and len(steps) == 1 and is_call(steps[0], aten.mul.Tensor) and FOLD in steps[0].meta


def _lends_shape_alone(node: Node) -> bool:
    return all(is_call(user, aten.new_zeros.default) for user in node.users)
