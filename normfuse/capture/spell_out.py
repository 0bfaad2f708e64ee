"""Write out operators that are a whole layer, so that the norms and weights inside of them are seen.

    _native_multi_head_attention(x) = W_o softmax(q k' / sqrt(d)) v + b_o,    [q, k, v] = W x + b
    _transformer_encoder_layer_fwd(x) = y + W_2 act(W_1 norm_2(y) + b_1) + b_2,  y = x + attention(norm_1(x))

In evaluation ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` call these, with each norm after
its sum where ``norm_first`` is false. Numerics class: reassociated; scores are scaled after the product
instead of before it. What cannot be written out is counted, and the switch that avoids it is named.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.nn import LayerNorm

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.emit import call
from normfuse.ir.sizes import same, shape_of, tensor_of

__all__ = ["spell_out"]

_LAYER = aten._transformer_encoder_layer_fwd.default
_ATTENTION = aten._native_multi_head_attention.default


def spell_out(gm: GraphModule) -> list[str]:
    """Write out what can be; returns what a person should know about the rest."""
    hidden: dict[str, int] = {}
    for node in list(gm.graph.nodes):
        if not is_call(node, _LAYER, _ATTENTION):
            continue
        obstacle = _obstacle(node)
        if not obstacle:
            _write_out(gm.graph, node)
        elif is_call(node, _LAYER):
            hidden[obstacle] = hidden.get(obstacle, 0) + 2
    return [
        f"aten._transformer_encoder_layer_fwd hides {count} norms and is left as it is ({obstacle}); call "
        "torch.backends.mha.set_fastpath_enabled(False) before compiling to have them looked at"
        for obstacle, count in hidden.items()
    ]


def _obstacle(node: Node) -> str:
    """Why the operator stays; empty for no reason."""
    bound = bind(node)
    source = bound["src"] if is_call(node, _LAYER) else bound["query"]
    value, mask, kind = tensor_of(source), tensor_of(bound["mask"]), bound["mask_type"]
    if value is None or value.is_nested or value.dim() != 3:
        return "its input is a nested tensor"
    if value.device.type != "cpu":
        return f"its kernel on {value.device.type} computes another gelu"
    if any(same(size, 0) for size in value.shape):
        return "its input has no elements"
    if bound["mask"] is not None and (mask is None or mask.dim() != {0: 2, 1: 2, 2: 4}.get(kind)):
        return "its mask is of an unknown type"
    if is_call(node, _ATTENTION) and not (bound["query"] is bound["key"] is bound["value"]):
        return "it attends to something else"
    return "" if _LAYER is node.target or _weights_are_known(node, bound) else "its result is read as a whole"


def _weights_are_known(node: Node, bound: dict[str, Any]) -> bool:
    """Whether only parts are read, and no attention weights that the operator does not return."""
    parts = all(user.target is operator.getitem for user in node.users)
    read = {user.args[1] for user in node.users if user.users} if parts else {1}
    return parts and bool(bound["need_weights"] or 1 not in read)


@dataclass(frozen=True)
class _Writer:
    """Puts operators before ``place``, named after the submodules that they stand for."""

    graph: Graph
    place: Node

    def __call__(self, part: str, target: Any, *args: Any) -> Node:
        with self.graph.inserting_before(self.place):
            made = call(self.graph, target, *args)
        kept = {k: v for k, v in self.place.meta.items() if k in ("nn_module_stack", "stack_trace")}
        stack = kept.get("nn_module_stack")
        if stack and part:
            path = f"{list(stack.values())[-1][0]}.{part}"
            kept["nn_module_stack"] = {
                **stack,
                path: (path, LayerNorm if "norm" in part else torch.nn.Linear),
            }
        made.meta = {**kept, **made.meta}
        return made


def _write_out(graph: Graph, node: Node) -> None:
    write, bound = _Writer(graph, node), bind(node)
    if is_call(node, _LAYER):
        node.replace_all_uses_with(_layer(write, bound))
    else:
        results = _attention(write, bound, bound["query"], "", bool(bound["need_weights"]))
        for user in list(node.users):
            made = results[int(user.args[1])]  # type: ignore[arg-type]
            if made is not None:
                user.replace_all_uses_with(made)
            graph.erase_node(user)
    graph.erase_node(node)


def _layer(write: _Writer, bound: dict[str, Any]) -> Node:
    def norm(x: Node, which: int) -> Node:
        weight, bias = bound[f"norm_weight_{which}"], bound[f"norm_bias_{which}"]
        sizes = [bound["embed_dim"]]
        return write(f"norm{which}", aten.layer_norm.default, x, sizes, weight, bias, bound["eps"])

    def feed_forward(x: Node) -> Node:
        inner = write("linear1", aten.linear.default, x, bound["ffn_weight_1"], bound["ffn_bias_1"])
        active = write("", aten.gelu.default if bound["use_gelu"] else aten.relu.default, inner)
        return write("linear2", aten.linear.default, active, bound["ffn_weight_2"], bound["ffn_bias_2"])

    def added(a: Node, b: Node) -> Node:
        return write("", aten.add.Tensor, a, b)

    x, first = bound["src"], bool(bound["norm_first"])
    attended, _ = _attention(write, bound, norm(x, 1) if first else x, "self_attn", False)
    y = added(attended, x)
    if first:
        return added(feed_forward(norm(y, 2)), y)
    y = norm(y, 1)
    return norm(added(feed_forward(y), y), 2)


def _attention(
    write: _Writer, bound: dict[str, Any], x: Node, part: str, weights: bool
) -> tuple[Node, Node | None]:
    """The output, and the attention weights where they are wanted."""
    heads = bound["num_heads"] if "num_heads" in bound else bound["num_head"]
    width = bound["embed_dim"] // heads
    joint = write(part, aten.linear.default, x, bound["qkv_weight"], bound["qkv_bias"])
    split = write(part, aten.unflatten.int, joint, -1, [3, heads, width])
    moved = write(part, aten.permute.default, split, [2, 0, 3, 1, 4])
    q, k, v = (write(part, aten.select.int, moved, 0, i) for i in range(3))
    if bound["mask"] is None and not weights:
        mixed, shares = write(part, aten.scaled_dot_product_attention.default, q, k, v), None
    else:
        shares = _shares(write, bound, part, q, k, 1 / math.sqrt(width))
        mixed = write(part, aten.matmul.default, shares, v)
        if weights and bound["average_attn_weights"]:
            shares = write(part, aten.mean.dim, shares, [1])
    rows = write(part, aten.flatten.using_ints, write(part, aten.transpose.int, mixed, 1, 2), 2, 3)
    inside = f"{part}.out_proj" if part else "out_proj"
    return write(inside, aten.linear.default, rows, bound["proj_weight"], bound["proj_bias"]), shares


def _shares(write: _Writer, bound: dict[str, Any], part: str, q: Node, k: Node, scale: float) -> Node:
    """What each position takes of each other one; a row that is masked throughout is not a number."""
    product = write(part, aten.matmul.default, q, write(part, aten.transpose.int, k, -2, -1))
    scores, mask = write(part, aten.mul.Tensor, product, scale), bound["mask"]
    if mask is not None:
        value = tensor_of(mask)
        assert value is not None
        if value.dtype != torch.bool:
            mask = write(part, aten.to.dtype, mask, torch.bool)
        if bound["mask_type"] == 1:
            mask = write(part, aten.unsqueeze.default, write(part, aten.unsqueeze.default, mask, 1), 1)
        scores = write(part, aten.masked_fill.Scalar, scores, mask, -math.inf)
    assert shape_of(scores) is not None
    return write(part, aten.softmax.int, scores, -1)
