"""A folded weight in blocks, so that only a part of a large one is ever there in float64.

A block is a range of the result along one axis. Walking back from the result, every step says which range of
its operands it needs: the same range, or the whole of one that is small. A mean along that axis is added up
over all blocks first. Where a step needs all of a large source for another reason, another axis is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from normfuse.folding.recipe import FOLD, Recipe, run_exactly
from normfuse.ir.calls import CASTS, aten, bind, is_call
from normfuse.torch_compat import outside_tracing

__all__ = ["BLOCK", "fold_blocks"]

#: Entries of the largest source that are held at once: few enough for the caches, and enough that the calls
#: for a block cost little beside its arithmetic.
BLOCK = 1 << 18
#: Sources of so many entries may be needed as a whole.
_SMALL = 1 << 20

_ELEMENTWISE = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_MOVES = (aten.reshape.default, aten.permute.default)


#: Computes one step of a recipe on the block that has this start and this length.
_Step = Callable[[int, int], Any]


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
        if axis is None and self._sizes.get(node, 0) > _SMALL:
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
    is_large = largest > BLOCK
    cut = _cut_axis(recipe, {n: s.numel() for n, s in held.items()}, shape) if is_large else None
    with outside_tracing(), torch.no_grad():
        if cut is None:
            yield 0, 0, recipe.compute(sources) if not shape else _Blocks(recipe, held, {}).at(0, shape[0])
            return
        axis, ranges = cut
        step = max(1, shape[axis] * BLOCK // largest)
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

    Each step has memory of its own for all blocks, or works in that of its operand: to ask the system for it
    takes longer than the step. One product of two entries is what the dtype itself gives, rounded once; in
    float16, whose small results are looked at in a wider dtype, it is exact in float32.
    """

    def __init__(
        self, recipe: Recipe, held: Mapping[Node, torch.Tensor], axes: Mapping[Node, int | None]
    ) -> None:
        self._recipe, self._axes = recipe, axes
        self._held = {node: value.detach() for node, value in held.items()}
        self._memory: dict[Node, torch.Tensor] = {}
        self._values: dict[Node, Any] = {}
        self._wide = _wide_dtype(recipe, held.values())
        self._steps: dict[Node, list[tuple[Node, _Step]]] = {}
        self._pairs = {node for node in recipe.body.nodes if _is_exact_pair(node)}
        self._widened = {node for node in held if _is_exact(node)}
        self._over = {node: root for node in self._pairs if (root := _last_read(node)) is not None}

    def add_up(self, mean: Node, along: int, parts: Sequence[tuple[int, int]]) -> None:
        """A mean over all blocks, which the steps behind it read as a whole."""
        operand = mean.args[0]
        assert isinstance(operand, Node)
        shape = [1 if d == along else n for d, n in enumerate(_shape(operand))]
        total = torch.zeros(shape, dtype=torch.float64)
        for start, length in parts:
            _add_sum(total, self._up_to(operand, start, length), along)
        self._values[mean] = total / sum(length for _, length in parts)

    def at(self, start: int, length: int) -> torch.Tensor:
        """The block of so many entries along the axis."""
        result = self._recipe.body.output_node().args[0]
        assert isinstance(result, Node)
        return self._up_to(result, start, length)

    def _up_to(self, last: Node, start: int, length: int) -> torch.Tensor:
        steps = self._steps.get(last)
        if steps is None:
            steps = self._steps[last] = [(n, self._step(n)) for n in self._cut_before(last)]
        for node, step in steps:
            self._values[node] = step(start, length)
        found: torch.Tensor = self._values[last]
        return found

    def _cut_before(self, last: Node) -> list[Node]:
        """What has to be computed for each block; what is needed as a whole is computed here, once."""
        found = []
        for node in self._recipe.body.nodes:
            if self._axes.get(node) is not None:
                found.append(node)
            elif node not in self._values and node.op != "output":
                self._values[node] = self._step(node)(0, 0)
            if node is last:
                break
        return found

    def _step(self, node: Node) -> _Step:
        """How a step is computed, on a block where it is cut; all that can be is decided beforehand."""
        if node.op == "placeholder":
            return self._read(node, self._axes.get(node))
        if node.op == "get_attr":
            return lambda start, length: getattr(self._recipe.root, str(node.target))
        if FOLD in node.meta and is_call(node, *CASTS):
            (operand,) = node.all_input_nodes
            return lambda start, length: self._values[operand]
        return self._pair(node) if node in self._pairs else self._call(node)

    def _read(self, node: Node, axis: int | None) -> _Step:
        """A source, or a range of it; in the dtype that is computed in where nothing else reads it."""
        held = self._held[node]
        is_kept = held.dtype == self._wide or node not in self._widened or not held.is_floating_point()

        def read(start: int, length: int) -> torch.Tensor:
            value = held if axis is None else held.narrow(axis, start, length)
            return value if is_kept else self._room(node, value.shape).copy_(value)

        return read

    def _pair(self, node: Node) -> _Step:
        one, other = node.args
        values, wide, run, call = self._values, self._wide, _OUT[node.target], self._call(node)
        over, axis, shape = self._over.get(node), self._axes.get(node), list(_shape(node))

        def pair(start: int, length: int) -> Any:
            left, right = values[one], values[other]  # type: ignore[index]
            if not left.dtype == right.dtype == wide:
                return call(start, length)
            if axis is not None:
                shape[axis] = length
            is_over = over in self._memory and list(left.shape) == shape
            return run(left, right, out=left if is_over else self._room(node, torch.Size(shape)))

        return pair

    def _call(self, node: Node) -> _Step:
        values, target, axis = self._values, node.target, self._axes.get(node)
        is_exact = FOLD in node.meta and not is_call(node, *_MOVES)
        given = node.args
        if axis is not None and is_call(node, aten.reshape.default):
            given = (given[0], [-1 if i == axis else n for i, n in enumerate(_shape(node))])

        def call(start: int, length: int) -> Any:
            args: Any = map_arg(given, values.__getitem__)
            kwargs: Any = map_arg(node.kwargs, values.__getitem__)
            return run_exactly(node, args, kwargs) if is_exact else target(*args, **kwargs)  # type: ignore[operator]

        return call

    def _room(self, node: Node, shape: torch.Size) -> torch.Tensor:
        """Memory for a wide value; that of the last block where it is large enough."""
        held = self._memory.get(node)
        if held is not None and held.shape == shape:
            return held
        if held is None or held.numel() < shape.numel():
            held = self._memory[node] = torch.empty(shape, dtype=self._wide)
            return held
        return held.view(-1)[: shape.numel()].view(shape)


def _add_sum(total: torch.Tensor, block: torch.Tensor, along: int) -> None:
    """Add the sum of a block along an axis; of rows as a product with ones, which reads them once."""
    block = block.double()
    if block.dim() == 2 and along == 0 and block.device.type == "cpu":
        total.addmm_(torch.ones(1, len(block), dtype=torch.float64), block)
    else:
        total += block.sum(along, keepdim=True)


_OUT: Mapping[Any, Any] = {
    aten.add.Tensor: torch.add, aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul, aten.div.Tensor: torch.div,
}  # fmt: skip


def _is_exact_pair(node: Node) -> bool:
    """Whether a step of a map takes two tensors, entry by entry."""
    is_pair = len(node.args) == 2 and not node.kwargs and all(isinstance(a, Node) for a in node.args)
    return is_pair and node.target in _OUT and FOLD in node.meta


def _is_exact(source: Node) -> bool:
    """Whether only steps of the map read a source."""
    return all(FOLD in user.meta for user in source.users) and not _lends_shape_alone(source)


def _last_read(node: Node) -> Node | None:
    """The source that is the first operand of a step, as it is, where no other step reads it afterwards."""
    operand: Any = node.args[0]
    while is_call(operand, *CASTS) and FOLD in operand.meta:
        operand = operand.args[0]
    if operand.op != "placeholder":
        return None
    readers, stack = set[Node](), list(operand.users)
    while stack:
        reader = stack.pop()
        is_same = is_call(reader, *CASTS, *_MOVES)
        stack += reader.users if is_same else ()
        readers |= set() if is_same and reader.users else {reader}
    return operand if all(reader is node or reader < node for reader in readers) else None


def _wide_dtype(recipe: Recipe, sources: Iterable[torch.Tensor]) -> torch.dtype:
    dtypes = {recipe.dtype, *(s.dtype for s in sources)}
    steps = [n for n in recipe.body.nodes if n.op == "call_function" and not is_call(n, *_MOVES, *CASTS)]
    is_product = len(steps) == 1 and is_call(steps[0], aten.mul.Tensor) and FOLD in steps[0].meta
    if not is_product or len(dtypes) > 1:
        return torch.float64
    return torch.float32 if recipe.dtype == torch.float16 else recipe.dtype


def _lends_shape_alone(node: Node) -> bool:
    return all(is_call(user, aten.new_zeros.default) for user in node.users)
