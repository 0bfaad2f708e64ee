"""Sums of two values as they are: what is added how often, and who else reads it."""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.sizes import same_shape, tensor_of

__all__ = ["is_alike", "only_reader", "shares", "summands", "terms_of"]


def shares(total: Node, operand: Node) -> tuple[Node, float, float] | None:
    """The other operand of a sum, and how often ``operand`` and the other one count."""
    terms = summands(total)
    if terms is None:
        return None
    (left, first), (right, second) = terms
    if left is right or operand not in (left, right):
        return None
    return (right, first, second) if operand is left else (left, second, first)


def summands(node: Node) -> tuple[tuple[Node, float], tuple[Node, float]] | None:
    """Two values of the sum's own shape and dtype, and how often each counts."""
    if not is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return None
    left, right, alpha = node.args[0], node.args[1], bind(node)["alpha"]
    if not isinstance(left, Node) or not isinstance(right, Node) or not is_alike(left, node):
        return None
    if not isinstance(alpha, (int, float)) or not alpha or not is_alike(right, node):
        return None
    return (left, 1.0), (right, float(alpha if is_call(node, aten.add.Tensor) else -alpha))


def only_reader(value: Node) -> Node | None:
    """Who reads a value, where that is one node in one place."""
    readers = list(value.users)
    reads = [a for user in readers for a in (*user.args, *user.kwargs.values()) if a is value]
    return readers[0] if len(readers) == len(reads) == 1 else None


def is_alike(a: object, b: Node) -> bool:
    """Whether two values have the same sizes and dtype."""
    left, right = tensor_of(a), tensor_of(b)
    return left is not None and right is not None and left.dtype == right.dtype and same_shape(a, b)


def terms_of(value: Node, weights: WeightValues, times: float = 1.0) -> list[tuple[Node, float]]:
    """The values that are added, each of which nothing else reads, and how often each counts."""
    if only_reader(value) is None or weights.is_written(value):
        return []
    terms = summands(value)
    if terms is None:
        return [(value, times)]
    return [term for operand, count in terms for term in terms_of(operand, weights, times * count)]
