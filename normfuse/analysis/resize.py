"""Operators anew where a map has changed the number of channels of what they read.

An operator follows the sizes of its operands, apart from those that its call names, as ``view(x, [2, 8])``
does. Whether it follows is found out by calling it on fake values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map_only

from normfuse.analysis.channel_map import ChannelMap
from normfuse.analysis.plan import Constant, Kept, Leaf, Plan, Rebuilt
from normfuse.errors import InvariantError
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.emit import fake_value
from normfuse.ir.location import described
from normfuse.ir.readers import reads_only_type
from normfuse.ir.sizes import rank_of, same, shape_of, tensor_of, tensors_of
from normfuse.report import Refusal
from normfuse.torch_compat import autocast_off, fakes_called, plain_size

__all__ = ["Preview", "channels_of", "fixed_by_type", "resize"]

#: Arguments that name the sizes of the result.
_SIZES = ("size", "shape")


@dataclass
class Preview:
    """The fake values that nodes will have; all others keep theirs."""

    fakes: dict[Node, Any] = field(default_factory=dict)

    def resized(
        self, node: Node, axis: int, width: int, plans: Iterable[tuple[Node, Plan]]
    ) -> Refusal | None:
        """Note what ``node`` will be: ``width`` channels along ``axis``, and ``plans`` for some operands."""
        planned = dict(plans)
        try:
            operands = {operand: self._planned(plan) for operand, plan in planned.items()}
            made = operands[node] if node in planned else self._evaluated(node, axis, width, operands)
        except Exception:
            return _fixed(node)
        if not _has_width(made, node, axis, width):
            return _fixed(node)
        self.fakes[node] = made
        return None

    def mapped(self, node: Node, axis: int, mapping: ChannelMap) -> None:
        """Note that ``mapping`` is put behind ``node``."""
        self.fakes[node] = self._planned(Leaf(node, axis, (mapping,)))

    def _planned(self, plan: Plan) -> Any:
        if isinstance(plan, Leaf):
            scratch = Graph()
            value = scratch.placeholder("value")
            value.meta["val"] = self._of(plan.node)
            for mapping in plan.maps:
                value = mapping.emit(scratch, value, plan.axis)
            return value.meta["val"]
        if isinstance(plan, Kept) and plan.resized is not None:
            return self._evaluated(plan.node, *plan.resized, {})
        if isinstance(plan, Rebuilt) and plan.resized is not None:
            operands = {operand: self._planned(deeper) for operand, deeper in plan.operands}
            made = self._evaluated(plan.node, *plan.resized, operands)
            if _has_width(made, plan.node, *plan.resized):
                return made
        raise InvariantError(f"{described(plan.node if not isinstance(plan, Constant) else plan.like)} stays")

    def _evaluated(self, node: Node, axis: int, width: int, operands: Mapping[Node, Any]) -> Any:
        args, kwargs = _with_sizes(node, axis, width)
        given, named = tree_map_only(
            Node, lambda n: operands[n] if n in operands else self._of(n), (args, kwargs)
        )
        with autocast_off(), fakes_called():
            return node.target(*given, **named)  # type: ignore[operator]

    def _of(self, node: Node) -> Any:
        return self.fakes.get(node, node.meta["val"])


def resize(node: Node, axis: int, width: int) -> None:
    """Give a node, whose operands have changed, its sizes and its fake value."""
    node.args, node.kwargs = _with_sizes(node, axis, width)
    node.meta["val"] = fake_value(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    if not _has_width(node.meta["val"], node, axis, width):
        raise InvariantError(f"{node.name} cannot have {width} channels")


def channels_of(node: Node, axis: int) -> int | None:
    """The size along an axis of a value, or of the parts of a list, when it is a plain number."""
    size = plain_size(tensors_of(node)[0].shape[axis])
    return size if isinstance(size, int) else None


def fixed_by_type(node: Node, axis: int) -> Refusal | None:
    """Why a value must keep its number of channels: something reads it, or kernels want it."""
    grouped = next((user for user in (node, *node.users) if _wants_whole_vectors(user)), None)
    if grouped is not None:
        message = f"{described(grouped)} has no kernel for a number of channels that is no multiple of 8"
        return Refusal("fixed_width", message, grouped.name)
    for user in node.users:
        if reads_only_type(user, node) and not _asks_something_else(user, axis, rank_of(node)):
            message = f"{described(user)} reads the number of channels of {described(node)}"
            return Refusal("fixed_width", message, user.name)
    return None


def _wants_whole_vectors(node: Node) -> bool:
    """Products by groups of rows want strides of a multiple of 16 bytes in half precision."""
    value = tensor_of(node)
    return is_call(node, aten._grouped_mm.default) and value is not None and value.itemsize == 2


def _asks_something_else(user: Node, axis: int, rank: int) -> bool:
    if is_call(user, aten.sym_size.int):
        return bool(bind(user)["dim"] % rank != axis)
    if is_call(user, aten._assert_tensor_metadata.default):
        bound = bind(user)
        return bound["size"] is None and bound["stride"] is None
    return is_call(user, aten.to.other, aten.type_as.default)


def _with_sizes(node: Node, axis: int, width: int) -> tuple[Any, Any]:
    """The arguments, with ``width`` where a list of all sizes names that of the axis."""
    sizes_before = shape_of(node)
    if not isinstance(node.target, OpOverload) or sizes_before is None:
        return node.args, node.kwargs
    before = sizes_before[axis]
    args, kwargs = list(node.args), dict(node.kwargs)
    for place, argument in enumerate(node.target._schema.arguments):
        held = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.name not in _SIZES or not isinstance(held, (list, tuple)) or len(held) != rank_of(node):
            continue
        if isinstance(held[axis], int) and held[axis] == before:
            sizes = [*held[:axis], width, *held[axis + 1 :]]
            if place < len(args):
                args[place] = sizes
            else:
                kwargs[argument.name] = sizes
    return tuple(args), kwargs


def _has_width(made: Any, node: Node, axis: int, width: int) -> bool:
    """Whether a fake value has the sizes of the node's but for the one along the axis."""
    found = list(made) if isinstance(made, (list, tuple)) else [made]
    before = tensors_of(node)
    if len(found) != len(before):
        return False
    return all(
        len(new.shape) == len(old.shape) and all(
            same(size, width if dim == axis else kept)
            for dim, (size, kept) in enumerate(zip(new.shape, old.shape, strict=True))
        )
        for new, old in zip(found, before, strict=True)
    )  # fmt: skip


def _fixed(node: Node) -> Refusal:
    message = f"{described(node)} does not follow when the number of channels changes"
    return Refusal("fixed_width", message, node.name)
