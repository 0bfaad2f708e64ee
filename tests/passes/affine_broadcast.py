"""Norms whose statistics, weights or readers have more channels than what they normalize.

Broadcasting repeats the values, so the weights that write them are fewer than those of the norm.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.passes.affine_cases import Cases, bn, buffer, conv, image, linear, normal, param

case = Cases()

#: Statistics of four channels, for values of one.
FOUR = {name: buffer(4, 1, 1) for name in ("mean", "var", "weight", "bias")}
ROWS = {name: buffer(4) for name in ("mean", "var", "weight", "bias")}
STORED = "broadcast_source"


def standardised(s, x):
    return (x - s.mean) * torch.rsqrt(s.var + 1e-3)


@case(STORED, conv=conv(6, 5, 1), **FOUR)
def slice_of_a_wider_convolution(s, x):
    h = s.conv(x)
    return standardised(s, h[:, 4:5]) + h[:, :4]


@case(STORED, conv=conv(6, 5, 1), **FOUR)
def first_channel(s, x):
    h = s.conv(x)
    return standardised(s, h[:, :1]) * s.weight + s.bias + h[:, 1:]


@case(STORED, conv=conv(6, 5, 1), **FOUR)
def part_of_a_split(s, x):
    one, rest = s.conv(x).split([1, 4], 1)
    return standardised(s, one) * rest


@case(STORED, conv=conv(6, 1, 3), **FOUR)
def convolution_of_one_channel(s, x):
    return standardised(s, s.conv(x))


@case(STORED, conv=conv(6, 6, 3, groups=6), **FOUR)
def depthwise_convolution(s, x):
    return standardised(s, s.conv(x)[:, 2:3])


@case(STORED, conv=conv(4, 3, 1), args=(image(1),), **FOUR)
def before_a_convolution(s, x):
    return s.conv(standardised(s, torch.relu(x)))


@case(STORED, lin=linear(4, 3), args=(normal(7, 1),), **ROWS)
def before_a_linear(s, x):
    return s.lin(standardised(s, torch.relu(x)))


@case(STORED, lin=linear(6, 1), args=(normal(7, 6),), **ROWS)
def linear_of_one_feature(s, x):
    return standardised(s, s.lin(x)) * s.weight + s.bias


@case(STORED, conv=conv(6, 1, 1), mean=param(4, 1, 1), var=param(4, 1, 1))
def statistics_that_are_parameters(s, x):
    return (s.conv(x) - s.mean) / torch.sqrt(s.var.abs() + 1e-3)


@case("constant_added", conv=conv(6, 1, 1), mean=buffer(4, 1, 1), var=buffer(1))
def mean_broadcasts_and_variance_does_not(s, x):
    return (s.conv(x) - s.mean) * torch.rsqrt(s.var + 1e-3) * torch.rsqrt(s.mean.abs() + 1.0)


@case(STORED, conv=conv(6, 1, 1), mean=buffer(1), var=buffer(4, 1, 1))
def variance_broadcasts_and_mean_does_not(s, x):
    return (s.conv(x) - s.mean) / (s.var + 1e-3).sqrt()


@case(STORED, conv=conv(6, 1, 1), skip=param(1), **FOUR)
def with_a_skip(s, x):
    h = s.conv(x)
    return standardised(s, h) + s.skip * h


@case(STORED, conv=conv(6, 1, 1), **FOUR)
def frozen(s, x):
    scale = s.weight * (s.var + 1e-5).rsqrt()
    return s.conv(x) * scale + (s.bias - s.mean * scale)


@case(STORED, conv=conv(6, 1, 1), var=buffer(4, 1, 1))
def unified_norm(s, x):
    return s.conv(x) / torch.sqrt(s.var + 1e-3)


@case(STORED, conv=conv(6, 1, 3, padding=1), last=conv(4, 1, 1), **FOUR)
def beside_a_convolution(s, x):
    h = torch.relu(s.conv(x))
    return standardised(s, h) + s.last(h.expand(-1, 4, -1, -1))


@case(STORED, lin=linear(6, 4), args=(normal(1, 6), normal(3, 4)), mean=buffer(3, 1), var=buffer(3, 1))
def rows_repeated_by_the_statistics(s, x, y):
    """The channels are the rows here: one row meets three statistics."""
    return (s.lin(x) - s.mean) * torch.rsqrt(s.var + 1e-3) + y


@case(conv=conv(6, 1, 1), last=conv(4, 2, 1), mean=buffer(4, 1, 1), var=buffer(4, 1, 1))
def expanded_ahead_of_the_norm(s, x):
    """What is expanded has a size of its own: the reader takes the norm."""
    return s.last(standardised(s, s.conv(x).expand(-1, 4, -1, -1)))


@case(conv=conv(6, 1, 1), last=conv(4, 2, 1), norm=bn(4))
def native_norm_of_expanded_values(s, x):
    return s.last(s.norm(s.conv(x).expand(-1, 4, -1, -1)))


@case("channel_gate", conv=conv(6, 1, 1), gate=param(4, 1, 1), norm=bn(4))
def writer_repeated_by_a_layer_scale(s, x):
    return torch.relu(s.norm(s.conv(x) * s.gate * torch.sigmoid(x[:, :4])))


@case(conv=conv(6, 1, 1), gate=param(4, 1, 1), norm=bn(4, affine=False))
def scale_that_repeats_its_operand(s, x):
    """The scale alone has the channels, and takes the factor; the shift stays with the reader."""
    return F.conv2d(s.norm(s.conv(x) * s.gate), torch.ones(2, 4, 1, 1, dtype=x.dtype))


@case("constant_added", conv=conv(6, 1, 1), other=conv(6, 4, 1), norm=bn(4))
def sum_that_repeats_a_term(s, x):
    return torch.relu(s.norm(s.conv(x) + s.other(x)))


@case(conv=conv(6, 4, 1), position=param(1, 4, 7, 7), norm=bn(4))
def table_of_positions(s, x):
    return torch.relu(s.norm(s.conv(x) + s.position))


@case(conv=conv(6, 4, 7), position=param(1, 4, 7, 7), norm=bn(4))
def table_that_repeats_positions(s, x):
    """One position meets many; the channels are the same."""
    return torch.relu(s.norm(s.conv(x) + s.position))
