"""Random draws of the oracle: in the model's dtype, then widened.

    rand(n, dtype=float32)  ->  rand(n, dtype=float32).to(float64)
    x.normal_()             ->  x.copy_(empty_like(x, dtype=float32).normal_())
    dropout(x, p)           ->  x * (dropout(ones_like(x, dtype=float32), p) != 0) / (1 - p)

A generator gives other numbers in float64 than in float32, so that a draw in float64 would not be the
model's.
"""

from __future__ import annotations

from typing import cast

import torch
from torch.fx import Graph, Node
from torch.fx.node import Argument

from normfuse.errors import VerificationError
from normfuse.verify.dtypes import is_narrow, is_real_number
from normfuse.verify.schema import bind, is_operator, known_dtype, operator_name, replace_argument

__all__ = ["NARROW_DRAW", "draws", "widen_draw"]

NARROW_DRAW = "normfuse_narrow_draw"  # node.meta key: this value is meant to be narrow

aten = torch.ops.aten

_DROPOUTS = {
    "aten::dropout": aten.mul.Tensor,
    "aten::dropout_": aten.mul_.Tensor,
    "aten::feature_dropout": aten.mul.Tensor,
    "aten::feature_dropout_": aten.mul_.Tensor,
}
_MASKS = {
    "aten::dropout": aten.dropout.default,
    "aten::dropout_": aten.dropout.default,
    "aten::feature_dropout": aten.feature_dropout.default,
    "aten::feature_dropout_": aten.feature_dropout.default,
}


def draws(node: Node) -> bool:
    """Whether the call takes random numbers that depend on a dtype (inactive dropout takes none)."""
    if not is_operator(node.target) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    bound = bind(node)
    if any(bound.get(name) is False for name in ("train", "training")):
        return False
    return not any(name in bound and bound[name] == 0 for name in ("p", "dropout", "dropout_p"))


def widen_draw(graph: Graph, node: Node, call: Node) -> Node:
    """Replace ``call``, the copy of the captured ``node`` in ``graph``, by a draw in the model's dtype.

    Raises ``VerificationError`` for draws whose outcome depends on a floating input, such as
    ``bernoulli(x)`` and attention dropout.
    """
    name, bound = operator_name(node), bind(node)
    if name in _DROPOUTS:
        return _dropout(graph, node, call)
    if "dtype" in bound:
        return _factory(graph, node, call)
    source = node.args[0] if node.args else None
    if name.endswith("_") and len(node.all_input_nodes) == 1 and isinstance(source, Node):
        return _in_place(graph, node, call, _dtype_or_refuse(node, source))
    if any((dtype := known_dtype(n)) is None or is_real_number(dtype) for n in node.all_input_nodes):
        raise VerificationError(
            f"{node.name} ({name}) draws random numbers that differ between dtypes; use eval()."
        )
    return call


def _factory(graph: Graph, node: Node, call: Node) -> Node:
    dtype = known_dtype(node) or bind(node)["dtype"]
    if not isinstance(dtype, torch.dtype):
        raise _unknown(node)
    replace_argument(call, "dtype", dtype)
    if not is_narrow(dtype):
        return call
    call.meta[NARROW_DRAW] = True
    return graph.call_function(aten._to_copy.default, (call,), {"dtype": torch.float64})


def _in_place(graph: Graph, node: Node, call: Node, dtype: torch.dtype) -> Node:
    if not is_narrow(dtype):
        return call
    target = cast(Node, call.args[0])
    with graph.inserting_before(call):
        scratch = graph.call_function(aten.empty_like.default, (target,), {"dtype": dtype})
    call.replace_input_with(target, scratch)
    scratch.meta[NARROW_DRAW] = call.meta[NARROW_DRAW] = True
    return graph.call_function(aten.copy_.default, (target, call))


def _dropout(graph: Graph, node: Node, call: Node) -> Node:
    dtype = _dtype_or_refuse(node, node.args[0])
    probability = cast(float, node.args[1])
    source, rest = call.args[0], call.args[1:]
    graph.erase_node(call)
    name = operator_name(node)
    ones = graph.call_function(aten.ones_like.default, (source,), {"dtype": dtype})
    mask = graph.call_function(_MASKS[name], (ones, *rest))
    ones.meta[NARROW_DRAW] = mask.meta[NARROW_DRAW] = True
    kept = graph.call_function(aten.ne.Scalar, (mask, 0))
    scale = 0.0 if probability == 1 else 1 / (1 - probability)
    weight: Argument = graph.call_function(aten.mul.Tensor, (kept, scale))
    return graph.call_function(_DROPOUTS[name], (source, weight))


def _dtype_or_refuse(node: Node, source: object) -> torch.dtype:
    if (dtype := known_dtype(source)) is None:
        raise _unknown(node)
    return dtype


def _unknown(node: Node) -> VerificationError:
    return VerificationError(f"{node.name} draws random numbers in a dtype that the graph does not record.")
