"""Norms with stored statistics: behind and before weights, beside them, read elsewhere, one after another.

Their statistics are random weights, as those of a trained model are. They stand on row-major values: of
others the operator's fake result lies in memory as the real one does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.network import Net
from tests.fuzz.pieces_write import writer

__all__ = ["BLOCKED"]

BLOCKED = {
    "norm_read_elsewhere", "norm_of_a_nonlinearity", "norm_before_padding", "norm_in_training",
    "computed_statistics", "norm_before_a_gate", "norm_read_in_two_places", "norm_of_added_halves",
    "norm_beside_two_of_one",
}  # fmt: skip


def batch_norm(net: Net, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Over dimension 1, in evaluation, with all of its operands."""
    d = x.shape[1]
    mean, variance = net.weight(d), net.variance(d)
    return F.batch_norm(x, mean, variance, net.weight(d), net.weight(d), False, 0.1, eps)


def _without_a_shift(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Scale alone: zeros remain zeros."""
    d = x.shape[1]
    return x * (net.weight(d) * torch.rsqrt(net.variance(d) + 1e-5)).view(1, d, 1)


def _first(v):
    """Channels in dimension 1."""
    return v.transpose(1, 2).contiguous()


@writer(kind="stored")
def norm_of_linear(net, v, d):
    rows = F.linear(v, net.weight(d, d), net.weight(d)).reshape(-1, d)
    return batch_norm(net, rows).view(v.shape)


@writer(kind="stored")
def norm_of_linear_without_bias(net, v, d):
    rows = F.linear(v.reshape(-1, d), net.weight(d, d))
    return batch_norm(net, rows, 1e-3).view(v.shape)


@writer(kind="stored")
def norm_of_conv(net, v, d):
    made = F.conv1d(_first(v), net.weight(d, d, 3), net.weight(d), padding=1)
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_grouped_conv(net, v, d):
    made = F.conv1d(_first(v), net.weight(d, 1, 1), groups=d)
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_conv_transpose(net, v, d):
    made = F.conv_transpose1d(_first(v), net.weight(d, d, 1), net.weight(d))
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_norm(net, v, d):
    made = F.conv1d(_first(v), net.weight(d, d, 1))
    return batch_norm(net, batch_norm(net, made), 1e-3).transpose(1, 2)


@writer(kind="stored")
def norm_of_a_sum(net, v, d):
    x = _first(v)
    made = F.conv1d(x, net.weight(d, d, 1)) + F.conv1d(x, net.weight(d, d, 3), net.weight(d), padding=1)
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_joined(net, v, d):
    x = _first(v)
    first, second = F.conv1d(x, net.weight(1, d, 1)), F.conv1d(x, net.weight(d - 1, d, 1), net.weight(d - 1))
    return batch_norm(net, torch.cat([first, second], 1)).transpose(1, 2)


@writer(kind="stored")
def frozen_norm(net, v, d):
    """As detectors spell it."""
    made = F.conv1d(_first(v), net.weight(d, d, 1))
    scale = net.weight(d).view(1, d, 1) * torch.rsqrt(net.variance(d).view(1, d, 1) + 1e-5)
    shift = net.weight(d).view(1, d, 1) - net.weight(d).view(1, d, 1) * scale
    return (made * scale + shift).transpose(1, 2)


@writer(kind="stored")
def norm_before_linear(net, v, d):
    normed = batch_norm(net, F.relu(v).reshape(-1, d))
    return F.linear(normed, net.weight(d, d), net.weight(d)).view(v.shape)


@writer(kind="stored")
def norm_before_conv(net, v, d):
    normed = batch_norm(net, F.relu(_first(v)))
    return F.conv1d(normed, net.weight(d, d, 1), net.weight(d)).transpose(1, 2)


@writer(kind="stored")
def norm_before_two(net, v, d):
    normed = batch_norm(net, F.relu(v).reshape(-1, d))
    both = F.linear(normed, net.weight(d, d)) + F.linear(normed, net.weight(d, d), net.weight(d))
    return both.view(v.shape)


@writer(kind="stored")
def scale_before_padding(net, v, d):
    normed = _without_a_shift(net, F.relu(_first(v)))
    return F.conv1d(normed, net.weight(d, d, 3), net.weight(d), padding=1).transpose(1, 2)


@writer(kind="stored")
def rep_norm(net, v, d):
    made = F.linear(v, net.weight(d, d), net.weight(d)).transpose(1, 2).contiguous()
    return (batch_norm(net, made) + net.weight(1) * made).transpose(1, 2)


@writer(kind="stored")
def rep_norm_before_linear(net, v, d):
    x = F.relu(_first(v))
    normed = batch_norm(net, x) + net.weight(1) * x
    return F.linear(normed.transpose(1, 2), net.weight(d, d), net.weight(d))


@writer(kind="stored")
def norm_beside_conv(net, v, d):
    x = F.relu(_first(v))
    made = F.conv1d(x, net.weight(d, d, 3), net.weight(d), padding=1) + batch_norm(net, x)
    return made.transpose(1, 2)


@writer(kind="stored")
def norm_of_conv_and_its_input(net, v, d):
    """RepViT's block, of a depthwise convolution."""
    x = F.relu(_first(v))
    made = F.conv1d(x, net.weight(d, 1, 3), net.weight(d), padding=1, groups=d) + x
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_a_difference_from_its_input(net, v, d):
    rows = F.relu(v).reshape(-1, d)
    made = torch.sub(net.weight(d) * rows, F.linear(rows, net.weight(d, d), net.weight(d)), alpha=0.5)
    return batch_norm(net, made).view(v.shape)


@writer(kind="stored")
def norm_taken_from_conv(net, v, d):
    x = F.relu(_first(v))
    made = F.conv1d(x, net.weight(d, d, 1)) - net.weight(d, 1) * batch_norm(net, x)
    return (net.weight(d, 1) * made).transpose(1, 2)


@writer(kind="stored")
def norms_of_three_branches(net, v, d):
    x = F.relu(_first(v))
    wide = batch_norm(net, F.conv1d(x, net.weight(d, d, 3), padding=1))
    made = batch_norm(net, x) - (wide - batch_norm(net, F.conv1d(x, net.weight(d, d, 1)), 1e-3))
    return made.transpose(1, 2)


@writer(kind="stored")
def standardised_weight(net, v, d):
    weight = net.weight(d, d, 2)
    flat = F.batch_norm(weight.view(1, d, -1), None, None, None, None, True, 0.0, 1e-5)
    padded = F.pad(_first(v), (1, 0))
    return F.conv1d(padded, flat.view(weight.shape), net.weight(d)).transpose(1, 2)


@writer(kind="stored")
def norm_of_a_weight(net, v, d):
    """A table of positions that is normalized on its own."""
    table = F.layer_norm(net.weight(v.shape[1], d), (d,), net.weight(d), net.weight(d))
    return F.linear(v, net.weight(d, d)) + table


@writer(kind="stored")
def norm_read_elsewhere(net, v, d):
    made = F.linear(v, net.weight(d, d)).transpose(1, 2).contiguous()
    net.extra.append(made.amax(1))
    return batch_norm(net, made).transpose(1, 2)


@writer(kind="stored")
def norm_of_a_nonlinearity(net, v, d):
    return batch_norm(net, F.gelu(F.linear(v, net.weight(d, d))).reshape(-1, d)).view(v.shape)


@writer(kind="stored")
def norm_before_padding(net, v, d):
    normed = batch_norm(net, F.relu(_first(v)))
    return F.conv1d(normed, net.weight(d, d, 3), net.weight(d), padding=1).transpose(1, 2)


@writer(kind="stored")
def norm_in_training(net, v, d):
    rows = F.linear(v, net.weight(d, d)).transpose(1, 2).contiguous()
    if rows.shape[0] * rows.shape[2] == 1:
        return rows.transpose(1, 2)  # PyTorch refuses statistics of one row
    return F.batch_norm(rows, None, None, net.weight(d), net.weight(d), True, 0.1, 0.1).transpose(1, 2)


@writer(kind="stored")
def computed_statistics(net, v, d):
    made = F.linear(v, net.weight(d, d)).transpose(1, 2).contiguous()
    mean, variance = made.mean((0, 2)), made.square().mean((0, 2)) + 0.1
    return F.batch_norm(made, mean, variance, None, None, False, 0.0, 1e-5).transpose(1, 2)


@writer(kind="stored")
def norm_before_a_gate(net, v, d):
    normed = batch_norm(net, F.relu(v).reshape(-1, d)).view(v.shape)
    return F.linear(normed, net.weight(d, d)) * torch.sigmoid(normed)


@writer(kind="stored")
def norm_of_a_factor_that_is_added(net, v, d):
    rows, weight = v.reshape(-1, d), net.weight(d, d)
    made = batch_norm(net, torch.addmm(weight, rows.t() @ rows, weight))
    return made.mean(0).expand(v.shape)


@writer(kind="stored")
def norm_read_in_two_places(net, v, d):
    h = batch_norm(net, torch.relu(_first(v)))
    pooled = F.avg_pool1d(h, 3, 1, 1, count_include_pad=False)
    return F.conv1d(torch.cat([h, pooled], 1), net.weight(d, 2 * d, 1)).transpose(1, 2)


@writer(kind="stored")
def norm_of_added_halves(net, v, d):
    first, second = F.conv1d(_first(v), net.weight(2 * d, d, 1)).chunk(2, 1)
    return torch.tanh(batch_norm(net, first + second)).transpose(1, 2)


@writer(kind="stored")
def norm_beside_two_of_one(net, v, d):
    x = _first(v)
    made = F.conv1d(x, net.weight(d, d, 1))
    return torch.tanh(batch_norm(net, x) + (made + made)).transpose(1, 2)
