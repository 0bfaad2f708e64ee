"""What writes into a stream: linear maps of many spellings, tables, parameters, and what only looks so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.network import ROWS, STEPS, Net
from tests.fuzz.recipe import Step

__all__ = ["BLOCKED", "JOINS"]

JOINS = ("add", "swapped", "sub", "alpha", "in_place", "iadd", "new", "branch")
BLOCKED = {
    "post_norm",
    "relu",
    "glu",
    "grouped",
    "dropped_in_training",
    "scalar",
    "per_token",
    "softmax",
    "linear_of_the_stream",
}


def _join(net: Net, step: Step, made: Tensor) -> None:
    """Into an existing stream, or as the beginning of another one."""
    if step.join == "new" or not net.streams:
        net.streams.append(made)
        return
    old = net.stream(step)
    may_write = 0 not in old.stride()
    if step.join == "branch":
        net.streams.append(old + made)
    elif step.join == "in_place" and may_write:
        net.replace(step, old.add_(made))
    elif step.join == "iadd" and may_write:
        old += made
        net.replace(step, old)
    else:
        net.replace(step, _sum(step.join, old, made))


def _sum(how: str, old: Tensor, made: Tensor) -> Tensor:
    if how == "sub":
        return old - made
    if how == "alpha":
        return torch.add(old, made, alpha=0.5)
    return made + old if how == "swapped" else old + made


def writer(*variants: str, kind: str = "write"):
    """Register a function of network, value and width that makes what is written."""

    def register(function):
        def run(net: Net, step: Step) -> None:
            _join(net, step, function(net, net.value(step), net.width))

        for variant in variants or (function.__name__,):
            STEPS.setdefault(kind, {})[variant] = run
        return function

    return register


@writer()
def linear(net, v, d):
    return F.linear(v, net.weight(d, d), net.weight(d))


@writer()
def linear_without_bias(net, v, d):
    return F.linear(v, net.weight(d, d))


@writer()
def matmul(net, v, d):
    return v @ net.weight(d, d) + net.weight(d)


@writer()
def addmm(net, v, d):
    return torch.addmm(net.weight(d), v.reshape(-1, d), net.weight(d, d)).view(v.shape)


@writer()
def einsum(net, v, d):
    return torch.einsum("btc,oc->bto", v, net.weight(d, d))


@writer()
def conv(net, v, d):
    return F.conv1d(v.transpose(1, 2), net.weight(d, d, 3), net.weight(d), padding=1).transpose(1, 2)


@writer()
def conv_of_image(net, v, d):
    return F.conv2d(v.mT.unsqueeze(-1), net.weight(d, d, 1, 1)).flatten(2).mT


@writer()
def conv_transpose(net, v, d):
    return F.conv_transpose1d(v.transpose(1, 2), net.weight(d, d, 1), net.weight(d)).transpose(1, 2)


@writer()
def layer_scale(net, v, d):
    return net.weight(d) * F.linear(v, net.weight(d, d), net.weight(d))


@writer()
def two_scales(net, v, d):
    return (F.linear(v, net.weight(d, d)) * net.weight(1, 1, d)).mul(net.weight(d)) * 0.5


@writer()
def experts(net, v, d):
    gate = torch.sigmoid(F.linear(v, net.weight(1, d)))
    return gate * F.linear(v, net.weight(d, d), net.weight(d)) + (1 - gate) * F.linear(v, net.weight(d, d))


@writer()
def embedding(net, v, d):
    return F.embedding(net.ids, net.weight(ROWS, d))


@writer()
def table_by_index(net, v, d):
    return net.weight(ROWS, d)[net.ids]


@writer()
def tied_head_and_table(net, v, d):
    table = net.weight(ROWS, d)
    net.extra.append(F.linear(v, table))
    return F.embedding(net.ids, table)


@writer()
def lora(net, v, d):
    low = F.linear(F.linear(v, net.weight(2, d)), net.weight(d, 2))
    return F.linear(v, net.weight(d, d), net.weight(d)) + 0.5 * low


@writer()
def merged_lora(net, v, d):
    return F.linear(v, net.weight(d, d) + net.weight(d, 2) @ net.weight(2, d))


@writer()
def weight_norm(net, v, d):
    direction = net.weight(d, d)
    return F.linear(v, direction * (net.weight(d, 1) / direction.norm(dim=1, keepdim=True)))


@writer()
def transposed_weight(net, v, d):
    return F.linear(v, net.weight(d, d).t(), net.weight(d))


@writer()
def attention(net, v, d):
    q, k = F.linear(v, net.weight(d, d)), F.linear(v, net.weight(d, d))
    mixed = F.scaled_dot_product_attention(q / d, k / d, v)
    return F.linear(mixed, net.weight(d, d), net.weight(d))


@writer()
def position(net, v, d):
    """A table of positions, sliced to the length and broadcast over the batch."""
    return net.weight(16, d)[: v.shape[1]].unsqueeze(0).expand(v.shape[0], -1, -1)


@writer()
def vector(net, v, d):
    return net.weight(d).expand(v.shape)


@writer()
def gelu_mlp(net, v, d):
    return F.linear(F.gelu(F.linear(v, net.weight(d + 1, d), net.weight(d + 1))), net.weight(d, d + 1))


@writer()
def cast_down(net, v, d):
    return F.linear(v.to(torch.float32), net.weight(d, d).to(torch.float32)).to(v.dtype)


@writer()
def batch_normed(net, v, d):
    """On row-major values: of others the operator's fake result lies in memory as the real one does not."""
    made = F.linear(v, net.weight(d, d)).transpose(1, 2).contiguous()
    mean, variance = net.weight(d), net.weight(d).square() + 0.1
    normed = F.batch_norm(made, mean, variance, net.weight(d), net.weight(d), False, 0.1, 1e-5)
    return normed.transpose(1, 2)


@writer()
def dropped(net, v, d):
    return F.dropout(F.linear(v, net.weight(d, d)), 0.5, False)


@writer()
def stochastic_depth(net, v, d):
    kept = (net.ids[:, :1] > 1).to(v.dtype).unsqueeze(-1)
    return F.linear(v, net.weight(d, d), net.weight(d)) * kept / 0.5


@writer()
def the_same_twice(net, v, d):
    weight, bias = net.weight(d, d), net.weight(d)
    return F.linear(F.gelu(F.linear(v, weight, bias)), weight, bias)


@writer()
def weight_of_two_roles(net, v, d):
    weight = net.weight(d, d)
    return F.linear(v * weight[0], weight)


@writer()
def class_token(net, v, d):
    token = net.weight(1, 1, d).expand(v.shape[0], -1, -1)
    return torch.cat([token, F.linear(v, net.weight(d, d))[:, 1:]], 1)


@writer()
def post_norm(net, v, d):
    return v


@writer()
def relu(net, v, d):
    return F.relu(F.linear(v, net.weight(d, d)))


@writer()
def glu(net, v, d):
    return F.linear(v, net.weight(d, d)) * torch.sigmoid(F.linear(v, net.weight(d, d)))


@writer()
def grouped(net, v, d):
    return F.conv1d(v.transpose(1, 2), net.weight(d, 1, 1), net.weight(d), groups=d).transpose(1, 2)


@writer()
def dropped_in_training(net, v, d):
    return F.dropout(F.linear(v, net.weight(d, d)), 0.5, True)


@writer()
def scalar(net, v, d):
    return F.linear(v, net.weight(d, d)) + 2.5


@writer()
def per_token(net, v, d):
    return F.linear(v, net.weight(d, d)) + v.sum(-1, keepdim=True)


@writer()
def softmax(net, v, d):
    return F.linear(v, net.weight(d, d)).softmax(-1)


def _linear_of_the_stream(net: Net, step: Step) -> None:
    h = net.stream(step)
    _join(net, step, F.linear(h, net.weight(net.width, net.width), net.weight(net.width)))


STEPS["write"]["linear_of_the_stream"] = _linear_of_the_stream
