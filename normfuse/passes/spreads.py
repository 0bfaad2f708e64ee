"""What belongs to a group of channels multiplies the group, and is not repeated for each channel first.

    x / sqrt(repeat(m)) -> flatten(split(x) / sqrt(m)),    m of the shape [..., groups, 1]

Bitwise neutral: each entry is divided by the same number as before. So a norm over groups is found whichever
way it was spelled; published PowerNorms repeat the statistic (Shen et al. 2020, arXiv 2003.07845, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

from torch.fx import GraphModule, Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.effects import Effects
from normfuse.ir.emit import call
from normfuse.ir.moves import COPIES, RESHAPES
from normfuse.ir.sizes import lies_alike, same, same_shape, shape_of

__all__ = ["narrow_spreads"]

#: Operators whose entries depend on one entry and numbers.
_ENTRYWISE = (
    aten.add.Tensor, aten.add.Scalar, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar,
    aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default, aten.pow.Tensor_Scalar,
    aten.clamp.default, aten.clamp_min.default, aten.to.dtype,
)  # fmt: skip
#: Along an axis of size one all of them repeat its entry.
_REPEATS = (
    aten.repeat.default, aten.expand.default, aten.expand_as.default, aten.repeat_interleave.self_int,
)  # fmt: skip
_SPLITS = (aten.view.default, aten.reshape.default, aten.unflatten.int)


class _Spread(NamedTuple):
    """A value of each group: ``groups`` of them, each repeated ``times`` along the last axis."""

    value: Node
    groups: int
    times: int


def narrow_spreads(gm: GraphModule) -> None:
    """Have products and quotients with repeated values of groups read the values themselves."""
    effects = Effects(gm.graph)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.mul.Tensor, aten.div.Tensor) or effects.is_written(node):
            continue
        for place in (1, 0) if is_call(node, aten.mul.Tensor) else (1,):
            if _narrow(node, place, order):
                break


def _narrow(node: Node, place: int, order: dict[Node, int]) -> bool:
    """Whether the factor at this place was repeated, and the node was written anew."""
    whole, (spread, chain) = node.args[1 - place], _spread_below(node.args[place])
    if spread is None or not isinstance(whole, Node):
        return False
    split = _split(whole, spread, order.get(node, 0), order)
    if split is None:
        return False
    with node.graph.inserting_before(node):
        made = [spread.value]
        for step in chain[::-1]:
            args = [made[-1] if arg is step.all_input_nodes[0] else arg for arg in step.args]
            made.append(call(node.graph, step.target, *args, **step.kwargs))  # type: ignore[arg-type]
        factors = (made[-1], split) if place == 0 else (split, made[-1])
        made.append(call(node.graph, node.target, *factors))  # type: ignore[arg-type]
        made.append(call(node.graph, aten.flatten.using_ints, made[-1], -2, -1))
    if not lies_alike(made[-1], node):
        return False
    for new in made[1:]:
        new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
    node.replace_all_uses_with(made[-1])
    return True


def _spread_below(node: object) -> tuple[_Spread | None, list[Node]]:
    """The repeated value that entrywise operators make ``node`` of, and these operators, the last first."""
    chain: list[Node] = []
    while isinstance(node, Node) and is_call(node, *_ENTRYWISE) and len(node.all_input_nodes) == 1:
        if node.args.count(node.all_input_nodes[0]) != 1:
            break
        chain.append(node)
        node = node.all_input_nodes[0]
    return (_spread(_without_copies(node)) if isinstance(node, Node) else None), chain


def _without_copies(node: Node) -> Node:
    """What copies, and reshapes to the same sizes, hand on."""
    while is_call(node, *COPIES, *RESHAPES):
        source = node.all_input_nodes[0]
        if is_call(node, *RESHAPES) and not same_shape(node, source):
            break
        node = source
    return node


def _spread(node: Node) -> _Spread | None:
    if is_call(node, aten.repeat_interleave.self_int):
        return _interleaved(node)
    inner = _without_copies(node.all_input_nodes[0]) if is_call(node, *RESHAPES) else None
    if inner is None or not is_call(inner, *_REPEATS):
        return None
    value = inner.all_input_nodes[0]
    before, wide, merged = shape_of(value) or (), shape_of(inner) or (), shape_of(node) or ()
    if not len(before) == len(wide) == len(merged) + 1 or not same(before[-1], 1):
        return None
    groups, times = wide[-2:]
    kept = zip((*before[:-1], *wide[:-2]), (*wide[:-1], *merged[:-1]), strict=True)
    if not isinstance(groups, int) or not isinstance(times, int) or not all(same(a, b) for a, b in kept):
        return None
    return _Spread(value, groups, times)


def _interleaved(node: Node) -> _Spread | None:
    bound = bind(node)
    value, times, rank = bound["self"], bound["repeats"], len(shape_of(node) or ())
    groups = (shape_of(value) or (None,))[-1]
    if bound["dim"] not in (-1, rank - 1) or not isinstance(times, int) or not isinstance(groups, int):
        return None
    with node.graph.inserting_before(node):
        return _Spread(call(node.graph, aten.unsqueeze.default, value, -1), groups, times)


def _split(whole: Node, spread: _Spread, place: int, order: dict[Node, int]) -> Node | None:
    """The groups of ``whole`` on an axis of their own, where the model has split them already."""
    copies = [user for user in whole.users if is_call(user, *COPIES)]
    for user in (user for value in (whole, *copies) for user in value.users):
        shape = shape_of(user)
        if is_call(user, *_SPLITS) and shape is not None and order.get(user, place) < place:
            expected = (*(shape_of(whole) or ())[:-1], spread.groups, spread.times)
            if len(shape) == len(expected) and all(map(same, shape, expected)):
                return user
    return None
