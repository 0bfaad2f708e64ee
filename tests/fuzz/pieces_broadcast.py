"""Operands of other sizes than what they meet: sources that are repeated, statistics that lie anywhere.

A norm of one channel by statistics of many has the channels of its statistics, which no writer has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.network import Net
from tests.fuzz.pieces_write import writer

__all__ = ["BLOCKED"]

BLOCKED = {
    "source_of_one_channel", "mean_of_many_channels", "variance_of_many_channels", "slice_of_one_channel",
    "part_of_one_channel", "frozen_norm_of_one_channel", "skip_of_one_channel",
    "one_channel_before_linear", "one_channel_before_conv", "one_channel_scaled", "one_channel_added",
    "positions_repeated_by_statistics",
}  # fmt: skip


def _one(net: Net, v: torch.Tensor) -> torch.Tensor:
    """One channel of its own."""
    return F.linear(v, net.weight(1, v.shape[-1]), net.weight(1))


def _standardised(net: Net, h: torch.Tensor, d: int) -> torch.Tensor:
    """By ``d`` means and variances, along the last axis."""
    return (h - net.weight(d)) * torch.rsqrt(net.variance(d) + 1e-3)


@writer(kind="stored")
def source_of_one_channel(net, v, d):
    return _standardised(net, _one(net, v), d) * net.weight(d) + net.weight(d)


@writer(kind="stored")
def mean_of_many_channels(net, v, d):
    return (_one(net, v) - net.weight(d)) * torch.rsqrt(net.variance(1) + 1e-3)


@writer(kind="stored")
def variance_of_many_channels(net, v, d):
    return (_one(net, v) - net.weight(1)) / torch.sqrt(net.variance(d) + 1e-3) + net.weight(d)


@writer(kind="stored")
def slice_of_one_channel(net, v, d):
    h = F.linear(v, net.weight(d + 1, d), net.weight(d + 1))
    return _standardised(net, h[..., d : d + 1], d) + h[..., :d]


@writer(kind="stored")
def part_of_one_channel(net, v, d):
    one, rest = F.linear(v, net.weight(d + 1, d)).split([1, d], -1)
    return _standardised(net, one, d) - rest


@writer(kind="stored")
def frozen_norm_of_one_channel(net, v, d):
    scale = net.weight(d) * torch.rsqrt(net.variance(d) + 1e-5)
    return _one(net, v) * scale + (net.weight(d) - net.weight(d) * scale)


@writer(kind="stored")
def skip_of_one_channel(net, v, d):
    h = _one(net, v)
    return _standardised(net, h, d) + net.weight(1) * h


@writer(kind="stored")
def one_channel_before_linear(net, v, d):
    return F.linear(_standardised(net, torch.tanh(v[..., :1]), d), net.weight(d, d), net.weight(d))


@writer(kind="stored")
def one_channel_before_conv(net, v, d):
    x = torch.tanh(v[..., :1].transpose(1, 2))
    normed = (x - net.weight(d, 1)) * torch.rsqrt(net.variance(d).view(d, 1) + 1e-3)
    return F.conv1d(normed, net.weight(d, d, 1)).transpose(1, 2)


@writer(kind="stored")
def positions_repeated_by_statistics(net, v, d):
    """One token meets as many statistics as there are channels, and the channels are the tokens."""
    h = F.linear(v.mean(1, keepdim=True), net.weight(d, d))
    normed = (h - net.weight(d, 1)) * torch.rsqrt(net.variance(d).view(d, 1) + 1e-3)
    return normed.mean(1, keepdim=True).expand(v.shape)


@writer()
def one_channel_scaled(net, v, d):
    """The scale has the channels, and the value one for all of them."""
    return _one(net, v) * net.weight(d) + F.linear(v, net.weight(d, d))


@writer()
def one_channel_added(net, v, d):
    return F.linear(v, net.weight(d, d)) + _one(net, v)


@writer()
def one_token_added(net, v, d):
    return F.linear(v, net.weight(d, d)) + F.linear(v.mean(1, keepdim=True), net.weight(d, d), net.weight(d))


@writer()
def one_token_met_by_positions(net, v, d):
    return F.linear(v[:, :1], net.weight(d, d)) + net.weight(16, d)[: v.shape[1]]


@writer()
def scale_with_more_axes(net, v, d):
    rows = F.linear(v, net.weight(d, d))
    return (rows * net.weight(1, 1, 1, d))[0]


@writer()
def rows_of_one_weight(net, v, d):
    weights = net.weight(3, d, d)
    return torch.matmul(v.unsqueeze(0), weights[:2].unsqueeze(1)).sum(0) + net.weight(2, d)[1]


@writer(kind="stored")
def statistics_in_rows(net, v, d):
    """Mean, variance, scale and shift in one weight."""
    held = net.variance(4 * d).view(4, d)
    rows = F.linear(v, net.weight(d, d)).reshape(-1, d)
    return F.batch_norm(rows, held[0], held[1], held[2], held[3], False, 0.1, 1e-5).view(v.shape)


@writer(kind="stored")
def statistics_with_an_axis_of_one(net, v, d):
    mean, variance = net.weight(1, d), net.variance(d).view(1, d)
    rows = F.linear(v, net.weight(d, d), net.weight(d)).reshape(-1, d)
    made = F.batch_norm(rows, mean.view(d), variance.reshape(-1), net.weight(d), None, False, 0.1, 1e-3)
    return made.view(v.shape)


@writer(kind="stored")
def statistics_with_strides(net, v, d):
    held = net.variance(2 * d).view(d, 2)
    normed = F.batch_norm(F.relu(v).reshape(-1, d), held[:, 0], held[:, 1], net.weight(2 * d)[::2])
    return F.linear(normed, net.weight(d, d), net.weight(d)).view(v.shape)


@writer(kind="stored")
def statistics_in_a_column(net, v, d):
    """Written out, with the channels ahead of the positions."""
    h = F.conv1d(v.transpose(1, 2), net.weight(d, d, 1))
    held = net.variance(2 * d).view(2, d, 1)
    return ((h - held[0]) / torch.sqrt(held[1] + 1e-3)).transpose(1, 2)


@writer(kind="stored")
def statistics_made_of_others(net, v, d):
    """A mean and a variance that weights are added to, as an average of models has them."""
    mean = 0.5 * (net.weight(d) + net.weight(1, d)[0])
    variance = (net.variance(d) + net.variance(d)) / 2
    rows = F.linear(v, net.weight(d, d)).reshape(-1, d)
    return F.batch_norm(rows, mean, variance, None, net.weight(d)).view(v.shape)


@writer(kind="stored")
def expanded_ahead_of_its_norm(net, v, d):
    h = _one(net, v).expand(-1, -1, d)
    return F.linear(_standardised(net, h, d), net.weight(d, d), net.weight(d))
