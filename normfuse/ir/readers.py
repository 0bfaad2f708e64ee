"""Which readers of a value read its entries, and not its type alone."""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.calls import aten, is_call

__all__ = ["reads_only_type", "value_readers"]

_SHAPE_ONLY = (
    aten.sym_size.int, aten.sym_stride.int, aten.sym_numel.default, aten._assert_tensor_metadata.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
)  # fmt: skip
_TYPE_OF_OTHER = (
    aten.to.other, aten.type_as.default, aten.reshape_as.default, aten.view_as.default,
    aten.expand_as.default,
)  # fmt: skip


def reads_only_type(user: Node, node: Node) -> bool:
    """Whether ``user`` reads the sizes, dtype or device of ``node`` and nothing else."""
    if is_call(user, *_TYPE_OF_OTHER):
        return user.args[0] is not node
    return is_call(user, *_SHAPE_ONLY)


def value_readers(node: Node) -> list[Node]:
    """The readers that want the entries of a value."""
    return [user for user in node.users if not reads_only_type(user, node)]
