"""How large an entry of a folded weight can be, by the largest entries of what it is made of.

One look at each source takes a fraction of the time in which the weight is folded, and is mostly enough to
know that a dtype holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Node

from normfuse.folding.recipe import FOLD, Recipe
from normfuse.ir.calls import CASTS, aten, is_call
from normfuse.ir.dtypes import FLOATS
from normfuse.ir.sizes import tensor_of
from normfuse.torch_compat import outside_tracing

__all__ = ["bound_of"]


def bound_of(recipe: Recipe, sources: Sequence[torch.Tensor]) -> float:
    """No entry of what is computed, in float64, is larger in size but for its rounding.

    Infinity or nan where the sources hold such numbers, or a step is none that is known here.
    """
    given, bounds = iter(sources), dict[Node, float]()
    with outside_tracing():
        for node in recipe.body.nodes:
            if node.op == "placeholder":
                bounds[node] = _largest(next(given))
            elif node.op == "get_attr":
                bounds[node] = _largest(attrgetter(str(node.target))(recipe.root))
            elif node.op == "call_function":
                bounds[node] = _behind(node, bounds)
    result = recipe.body.output_node().args[0]
    return bounds[result] if isinstance(result, Node) else math.inf


def _largest(value: Any) -> float:
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.dtype not in FLOATS:
        return math.inf
    if not value.numel():
        return 0.0
    smallest, largest = value.detach().aminmax()
    return float(torch.maximum(-smallest, largest))


def _behind(node: Node, bounds: Mapping[Node, float]) -> float:
    """What the model itself computes, in whatever dtype, is not looked at."""
    rule = next((rule for targets, rule in _RULES if is_call(node, *targets)), None)
    if rule is None or FOLD not in node.meta:
        return math.inf
    return rule(node, [bounds[arg] if isinstance(arg, Node) else _number(arg) for arg in node.args])


def _number(argument: object) -> float:
    return abs(float(argument)) if isinstance(argument, (int, float)) else math.nan


def _same(node: Node, sizes: Sequence[float]) -> float:
    return sizes[0]


def _sum(node: Node, sizes: Sequence[float]) -> float:
    return math.inf if node.kwargs else sizes[0] + sizes[1]


def _product(node: Node, sizes: Sequence[float]) -> float:
    return sizes[0] * sizes[1]


def _sum_of_products(node: Node, sizes: Sequence[float]) -> float:
    left = tensor_of(node.args[0])
    return math.inf if left is None else float(left.shape[-1]) * sizes[0] * sizes[1]


def _zero(node: Node, sizes: Sequence[float]) -> float:
    return 0.0


_RULES: tuple[tuple[Sequence[Any], Callable[[Node, Sequence[float]], float]], ...] = (
    ((aten.add.Tensor, aten.sub.Tensor), _sum),
    ((aten.mul.Tensor,), _product),
    ((aten.matmul.default,), _sum_of_products),
    ((aten.new_zeros.default,), _zero),
    ((*CASTS, aten.mean.dim, aten.permute.default, aten.reshape.default), _same),
)
