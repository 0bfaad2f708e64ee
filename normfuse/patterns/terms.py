"""Sums and products of numbers and of vectors of the model, put into the graph when they are wanted.

What is zero or one is left out. Vectors have one entry per channel, or one for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from normfuse.ir.calls import aten
from normfuse.ir.emit import call, cast
from normfuse.torch_compat import autocast_off, fakes_called

__all__ = ["Made", "Term", "divided", "negative", "node_of", "plus", "times"]


@dataclass(frozen=True)
class Made:
    """An operator on two terms."""

    target: OpOverload
    left: Term
    right: Term


Term = float | Node | Made


def times(left: Term, right: Term) -> Term:
    if isinstance(left, float) and isinstance(right, float):
        return left * right
    if left == 0.0 or right == 0.0:
        return 0.0
    if left == 1.0 or right == 1.0:
        return right if left == 1.0 else left
    return Made(aten.mul.Tensor, left, right)


def divided(left: Term, right: Term) -> Term | None:
    """None for what is divided by zero."""
    if right == 0.0:
        return None
    if isinstance(left, float) and isinstance(right, float):
        return left / right
    if left == 0.0 or right == 1.0:
        return left
    return Made(aten.div.Tensor, left, right)


def plus(left: Term, right: Term) -> Term:
    if isinstance(left, float) and isinstance(right, float):
        return left + right
    if left == 0.0 or right == 0.0:
        return right if left == 0.0 else left
    return Made(aten.add.Tensor, left, right)


def negative(term: Term) -> Term:
    return times(-1.0, term)


def node_of(term: Term, graph: Graph, dtype: torch.dtype, like: torch.Tensor) -> Node | None:
    """The value of a term at the graph's insertion point, an operand as it is; None for zero."""
    if isinstance(term, Node) or term == 0.0:
        return term if isinstance(term, Node) else None
    if isinstance(term, float):
        made = graph.call_function(aten.full.default, ([1], term), {"dtype": dtype, "device": like.device})
        with autocast_off(), fakes_called():
            made.meta["val"] = like.new_full((1,), term, dtype=dtype)
        return made
    return _emitted(term, graph, dtype)


def _emitted(term: Made, graph: Graph, dtype: torch.dtype) -> Node:
    left, right = (t if isinstance(t, float) else _vector(t, graph, dtype) for t in (term.left, term.right))
    if isinstance(left, float):
        if term.target is aten.div.Tensor:
            inverse = call(graph, aten.reciprocal.default, right)
            return inverse if left == 1.0 else call(graph, aten.mul.Tensor, inverse, left)
        left, right = right, left
    return call(graph, term.target, left, right)


def _vector(term: Node | Made, graph: Graph, dtype: torch.dtype) -> Node:
    if isinstance(term, Made):
        return _emitted(term, graph, dtype)
    return cast(graph, call(graph, aten.reshape.default, term, [-1]), dtype)
