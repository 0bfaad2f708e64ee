"""Fold a norm into the weight beside it: both read one value, and their results are added.

    A(x) + conv(x) = conv'(x),    W' = W + diag(D) at the middle tap,    b' = b + A(0)

A scale and shift per channel is a convolution of one pixel (Ding et al. 2021, arXiv 2101.03697, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.sizes import rank_of, same, shape_of, tensor_of

__all__ = ["Beside", "beside"]

_CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@dataclass(frozen=True)
class Beside:
    """``sum`` adds the norm to ``rest``, a sum in which ``reader`` has the norm's input and a weight."""

    sum: Node
    rest: Node
    reader: Node
    weight: Node
    groups: int


def beside(norm: Node, source: Node, axis: int, weights: WeightValues) -> Beside | None:
    """A linear or convolution that can take the norm, where there is one."""
    total = _only_reader(norm)
    if total is None or not _is_plain_sum(total) or weights.is_written(source):
        return None
    rest = total.args[1] if total.args[0] is norm else total.args[0]
    for term in _terms(rest):
        found = _weight_of(term, source, axis)
        if found is not None and _are_free(term, found[0], weights) and not weights.is_written(term):
            return Beside(total, rest, term, *found)  # type: ignore[arg-type]
    return None


def _only_reader(value: Node) -> Node | None:
    """Who reads a value, where that is one node in one place."""
    readers = list(value.users)
    reads = [a for user in readers for a in (*user.args, *user.kwargs.values()) if a is value]
    return readers[0] if len(readers) == len(reads) == 1 else None


def _is_plain_sum(node: Node) -> bool:
    """Whether a node adds two values of its own shape and dtype."""
    if not is_call(node, aten.add.Tensor) or bind(node)["alpha"] != 1:
        return False
    return all(_is_alike(operand, node) for operand in node.args[:2])


def _is_alike(a: object, b: Node) -> bool:
    left, right = tensor_of(a), tensor_of(b)
    if left is None or right is None or left.dtype != right.dtype or left.dim() != right.dim():
        return False
    return all(same(x, y) for x, y in zip(left.shape, right.shape, strict=True))


def _terms(value: object) -> list[Node]:
    """The values that are added, each of which nothing else reads."""
    if not isinstance(value, Node) or _only_reader(value) is None:
        return []
    if not _is_plain_sum(value):
        return [value]
    return [term for operand in value.args[:2] for term in _terms(operand)]


def _are_free(term: Node, weight: Node, weights: WeightValues) -> bool:
    bias = bind(term)["bias"]
    return _is_free(weight, weights) and (bias is None or _is_free(bias, weights))


def _is_free(weight: Node, weights: WeightValues) -> bool:
    fixed = all(isinstance(size, int) for size in shape_of(weight) or (None,))
    return weight in weights and weights.refusal(weight) is None and fixed


def _weight_of(node: Node, source: Node, axis: int) -> tuple[Node, int] | None:
    """The weight whose middle tap maps each channel of ``source`` onto itself: the sum is of one shape."""
    if is_call(node, aten.linear.default):
        bound = bind(node)
        fits = bound["input"] is source and axis == rank_of(source) - 1
        return (bound["weight"], 1) if fits else None
    if not is_call(node, *_CONVS):
        return None
    bound = bind(node)
    fits = bound["input"] is source and axis == rank_of(source) - (rank_of(bound["weight"]) - 1)
    return (bound["weight"], bound["groups"]) if fits and _is_centred(bound) else None


def _is_centred(bound: dict[str, Any]) -> bool:
    """Whether the middle tap of each output reads the input at the same place."""
    kernel = (shape_of(bound["weight"]) or ())[2:]
    strides, padding, dilation = (_each(bound[n], len(kernel)) for n in ("stride", "padding", "dilation"))
    return all(
        isinstance(k, int) and k % 2 == 1 and s == 1 and p == d * (k // 2)
        for k, s, p, d in zip(kernel, strides, padding, dilation, strict=True)
    )


def _each(value: Any, count: int) -> list[Any]:
    """One number for every axis of the kernel."""
    values = list(value)
    return values * count if len(values) == 1 else values
