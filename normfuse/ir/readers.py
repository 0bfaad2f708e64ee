"""What an operator reads, and which readers of a value read its entries, not its type alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.fx import Node

from normfuse.ir.calls import aten, is_call

__all__ = ["ancestors", "operands_of", "reads_only_type", "value_readers"]

_SHAPE_ONLY = (
    aten.sym_size.int, aten.sym_stride.int, aten.sym_numel.default, aten._assert_tensor_metadata.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
)  # fmt: skip
_TYPE_OF_OTHER = (
    aten.to.other, aten.type_as.default, aten.reshape_as.default, aten.view_as.default,
    aten.expand_as.default,
)  # fmt: skip


def operands_of(node: Node) -> Iterator[Node]:
    """What a node reads, as often as it reads it; lists are looked into."""
    yield from _nodes(node.args)
    yield from _nodes(node.kwargs)


def _nodes(argument: object) -> Iterator[Node]:
    if isinstance(argument, Node):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for one in argument:
            yield from _nodes(one)
    elif isinstance(argument, Mapping):
        yield from _nodes(tuple(argument.values()))


def reads_only_type(user: Node, node: Node) -> bool:
    """Whether ``user`` reads the sizes, dtype or device of ``node`` and nothing else."""
    if is_call(user, *_TYPE_OF_OTHER):
        return user.args[0] is not node
    return is_call(user, *_SHAPE_ONLY)


def value_readers(node: Node) -> list[Node]:
    """The readers that want the entries of a value."""
    return [user for user in node.users if not reads_only_type(user, node)]


def ancestors(node: Node) -> set[Node]:
    """All that a value is made of, itself included."""
    seen, stack = {node}, [node]
    while stack:
        fresh = [n for n in stack.pop().all_input_nodes if n not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return seen
