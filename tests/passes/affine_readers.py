"""Norms ahead of the weights that take them, and near misses."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import (
    FROZEN,
    Cases,
    bn,
    bn1,
    buffer,
    conv,
    frozen,
    image,
    linear,
    normal,
    param,
)

case = Cases()


@case(norm=bn(6), conv=conv(6, 4, 3, groups=2, stride=2, dilation=2))
def convolution(s, x):
    return s.conv(s.norm(x))


@case(norm=bn(6), conv=conv(6, 6, 3, groups=6, bias=False))
def depthwise_convolution(s, x):
    return s.conv(s.norm(x))


@case(norm=bn1(6), conv=lambda: nn.Conv1d(6, 4, 3), args=(normal(2, 6, 9),))
def convolution_of_a_sequence(s, x):
    return s.conv(s.norm(x))


@case(
    norm=lambda: nn.BatchNorm3d(6),
    conv=lambda: nn.Conv3d(6, 4, 2, padding="valid"),
    args=(normal(2, 6, 3, 4, 5),),
)
def convolution_of_a_volume(s, x):
    return s.conv(s.norm(x))


@case(norm=bn(6), conv=conv(6, 4, 1, padding="same"))
def same_padding_of_one_pixel(s, x):
    return s.conv(s.norm(x))


@case(
    norm=bn(6),
    a=conv(6, 4, 3, padding=1, padding_mode="reflect"),
    b=conv(6, 4, 3, padding=1, padding_mode="circular"),
)
def padding_that_repeats(s, x):
    h = s.norm(x)
    return s.a(h) + s.b(h)


@case(norm=bn(6), conv=conv(6, 4, 3, padding=1, padding_mode="replicate"))
def replicated_padding(s, x):
    return s.conv(s.norm(x))


@case("zero_padding", norm=bn(6), conv=conv(6, 4, 3, padding=1))
def zero_padding(s, x):
    return s.conv(s.norm(x))


@case("zero_padding", norm=bn(6), conv=conv(6, 4, 3, padding="same"))
def zero_padding_by_name(s, x):
    return s.conv(s.norm(x))


@case("zero_padding", norm=bn(6), conv=conv(6, 4, 1, padding=1))
def zero_padding_of_a_pixel(s, x):
    return s.conv(s.norm(x))


@case("shift_blocked", norm=bn(6), conv=conv(6, 4, 3))
def zeros_padded_ahead(s, x):
    return s.conv(F.pad(s.norm(x), (1, 1, 1, 1)))


@case(running_var=buffer(6), conv=conv(6, 4, 3, padding=1))
def zero_padding_without_a_shift(s, x):
    return s.conv(x * (s.running_var + 1e-5).rsqrt().view(-1, 1, 1))


@case("zero_padding", norm=bn(6), conv=lambda: nn.ConvTranspose2d(6, 4, 3, stride=2))
def transposed_convolution(s, x):
    return s.conv(s.norm(x))


@case(running_var=buffer(6), conv=lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2))
def transposed_convolution_without_a_shift(s, x):
    return s.conv(x / (s.running_var + 1e-5).sqrt().view(-1, 1, 1))


@case(norm=bn1(6), lin=linear(6, 4), args=(normal(3, 6),))
def linear_layer(s, x):
    return s.lin(s.norm(x))


@case(norm=bn1(6), lin=linear(6, 4, bias=False), args=(normal(3, 6, 5),))
def linear_layer_of_moved_channels(s, x):
    return s.lin(s.norm(x).transpose(1, 2))


@case("stream_enters_graph", norm=bn1(6), lin=linear(6, 4), args=(normal(3, 6, 6),))
def linear_layer_over_other_axes(s, x):
    return s.lin(s.norm(x))


@case(norm=bn1(6), w=param(6, 4), b=param(4), args=(normal(3, 6),))
def addmm(s, x):
    return torch.addmm(s.b, s.norm(x), s.w)


@case("no_bias", norm=bn1(6), w=param(6, 4), args=(normal(3, 6),))
def matmul_has_no_bias(s, x):
    return s.norm(x) @ s.w


@case("stream_enters_graph", norm=bn1(6), args=(normal(6, 6),))
def product_with_itself(s, x):
    h = s.norm(x)
    return h @ h


@case("stream_enters_graph", norm=bn1(6), args=(normal(5, 6), normal(4, 6)))
def a_weight_from_outside(s, x, w):
    return F.linear(s.norm(x), w)


@case("stream_enters_graph", norm=bn1(6), lin=linear(6, 6), args=(normal(5, 6),))
def residual_reader(s, x):
    h = s.norm(x)
    return h + s.lin(h)


@case("stream_enters_graph", norm=bn(6), conv=conv(6, 4, 1))
def relu_reader(s, x):
    return s.conv(torch.relu(s.norm(x)))


@case("stream_enters_graph", norm=bn(6), conv=conv(6, 4, 1))
def returned_as_well(s, x):
    h = s.norm(x)
    return s.conv(h), h


@case(norm=bn(6), a=conv(6, 4, 1), b=conv(6, 3, 2, bias=False))
def several_readers(s, x):
    h = s.norm(x)
    return s.a(h), s.b(h), torch.zeros_like(h)


@case(one=bn(6), two=bn(6), a=conv(6, 4, 1), b=conv(6, 4, 1))
def several_norms_of_one_value(s, x):
    return s.a(s.one(x)) + s.b(s.two(x)) + x.mean()


@case(norm=bn(6), lin=linear(6, 3))
def pooled_to_a_classifier(s, x):
    return s.lin(F.adaptive_avg_pool2d(s.norm(x), 1).flatten(1))


@case(norm=bn(6), lin=linear(6, 3))
def mean_to_a_classifier(s, x):
    return s.lin(s.norm(x).mean((2, 3)))


@case(norm=bn(6), lin=linear(294, 3))
def flattened_to_a_classifier(s, x):
    return s.lin(s.norm(x).flatten(1))


@case("shift_blocked", norm=bn(6), lin=linear(6, 3))
def sum_to_a_classifier(s, x):
    return s.lin(s.norm(x).sum((2, 3)))


@case(norm=bn(6), conv=conv(6, 3, 1))
def pooled_without_counted_padding(s, x):
    return s.conv(F.avg_pool2d(s.norm(x), 3, 1, 1, count_include_pad=False))


@case("shift_blocked", norm=bn(6), conv=conv(6, 3, 1))
def pooled_with_counted_padding(s, x):
    return s.conv(F.avg_pool2d(s.norm(x), 3, 1, 1))


@case(norm=bn(6), conv=conv(6, 3, 1))
def pooled_with_a_ceiling(s, x):
    return s.conv(F.avg_pool2d(s.norm(x), 3, 2, 0, ceil_mode=True))


@case("shift_blocked", norm=bn(6), conv=conv(6, 3, 1))
def pooled_with_a_divisor(s, x):
    return s.conv(F.avg_pool2d(s.norm(x), 2, divisor_override=3))


@case(norm=bn(6), conv=conv(6, 3, 1))
def resampled(s, x):
    return s.conv(F.interpolate(s.norm(x), scale_factor=2, mode="bilinear") * -0.5)


@case(one=bn(6), two=bn(6), conv=conv(6, 3, 1))
def norm_of_norm(s, x):
    return s.conv(s.two(s.one(x)))


@case(norm=bn1(6), alpha=param(1), lin=linear(6, 4, bias=False), args=(normal(3, 5, 6),))
def rep_batch_norm(s, x):
    h = x.transpose(1, 2)
    return s.lin((s.norm(h) + s.alpha * h).transpose(1, 2))


@case(first=conv(6, 5, 3), lin=conv(5, 4, 1), norm=bn())
def behind_relu_ahead_of_a_convolution(s, x):
    return s.lin(s.norm(torch.relu(s.first(x))))


@case("no_rule", one=bn(4), lin=conv(6, 4, 1), inst=lambda: nn.InstanceNorm2d(2))
def joined_channels(s, x):
    return s.lin(torch.cat([s.inst(x[:, :2]), s.one(x[:, 2:])], 1))


@case(norm=bn(6), a=conv(2, 3, 1), b=conv(4, 3, 1))
def split_channels(s, x):
    left, right = s.norm(x).split([2, 4], 1)
    return s.a(left) + s.b(right)


@case(norm=bn(6), a=conv(3, 3, 1))
def sliced_channels(s, x):
    h = s.norm(x)
    return s.a(h[:, 1:4]) + s.a(h[:, -3:])


@case(conv=conv(5, 4, 1), args=(image(5),), **FROZEN)
def frozen_arithmetic(s, x):
    return s.conv(frozen(s, x))


@case(norm=bn(6), w=param(4, 6, 1, 1))
def a_weight_of_two_readers(s, x):
    return F.conv2d(s.norm(x), s.w) + F.conv2d(x, s.w)


for _groups in (1, 2, 6):

    @case(norm=bn(6), conv=conv(6, 6, 3, padding=2, dilation=2, groups=_groups, bias=_groups == 2))
    def beside_a_convolution(s, x):
        return torch.relu(s.conv(x) + s.norm(x)) + x


@case(norm=bn(6), one=bn(6), a=conv(6, 6, 1), b=conv(6, 6, 3, padding=1), c=bn(6))
def beside_convolutions_with_norms(s, x):
    return torch.relu(s.c(x) + (s.norm(s.a(x)) + s.one(s.b(x)))) * x


@case(norm=bn1(6), lin=linear(6, 6), args=(normal(4, 6),))
def beside_a_linear(s, x):
    return torch.relu(s.norm(x) + s.lin(x)) - x


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=1))
def beside_a_convolution_that_is_read_elsewhere(s, x):
    h = s.conv(x)
    return torch.relu(h + s.norm(x)) + h


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=(1, 1), stride=1))
def beside_a_convolution_of_another_value(s, x):
    return torch.relu(s.conv(2 * x) + s.norm(x))


@case(norm=bn(6), conv=conv(6, 6, (1, 3), padding=(0, 1)), w=param(1))
def beside_a_convolution_that_is_scaled(s, x):
    return torch.relu(torch.add(s.norm(x), s.conv(x), alpha=2))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 2), args=(image(6)[..., :1, :1],))
def beside_a_convolution_of_even_size(s, x):
    return torch.relu(s.norm(x) + s.conv(F.pad(x, (0, 1, 0, 1))))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=0, stride=7), args=(image(6)[..., :4, :4],))
def beside_a_convolution_of_another_place(s, x):
    return torch.relu(s.norm(x) + s.conv(x))


@case(
    "stream_enters_graph",
    args=(normal(2, 4, 5), normal(4, 3, 2)),
    var=buffer(3, 1),
    conv=linear(2, 3, bias=False),
)
def kernel_of_a_grouped_transposed_convolution(s, z, kernel):
    y = F.conv_transpose1d(z, kernel / torch.sqrt(s.var + 1e-5), groups=2)
    return s.conv(y[:, 2:4].transpose(1, 2))


@case(args=(normal(2, 4, 7), normal(6, 2, 3)), var=buffer(6, 1, 1), conv=linear(6, 3, bias=False))
def kernel_of_a_grouped_convolution(s, z, kernel):
    return s.conv(F.conv1d(z, kernel / torch.sqrt(s.var + 1e-5), groups=2).transpose(1, 2))


@case(norm=bn(6), a=conv(6, 4, 1), b=conv(6, 3, 1))
def split_along_another_axis(s, x):
    first, second = s.norm(x).chunk(2, 2)
    return s.a(first), s.b(second)


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=2, stride=3), args=(image(6)[..., :2, :2],))
def beside_a_convolution_of_as_many_other_places(s, x):
    return torch.relu(s.norm(x) + s.conv(x))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 2, padding=1, dilation=2))
def beside_a_convolution_without_a_middle(s, x):
    return torch.relu(s.norm(x) + s.conv(x))


@case("raw_reader", norm=bn1(6), lin=linear(6, 6), args=(normal(4, 6, 6),))
def beside_a_linear_of_another_axis(s, x):
    return torch.relu(s.norm(x) + s.lin(x))


@case("raw_reader", norm=bn1(6), args=(normal(4, 6, 7), normal(6, 6, 3)))
def beside_a_convolution_with_a_kernel_from_outside(s, x, kernel):
    return torch.relu(s.norm(x) + F.conv1d(x, kernel, padding=1))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=1))
def beside_a_convolution_and_read_again(s, x):
    normed = s.norm(x)
    return torch.relu(normed + s.conv(x)), normed.sum(1)


@case(
    "raw_reader",
    norm=bn(6),
    conv=conv(6, 6, 3, padding=1),
    b=param(6, 6, 6),
    args=(normal(6, 6, 6, 6),),
)
def beside_a_convolution_with_a_bias_behind_it(s, x):
    return torch.relu(s.norm(x) + (s.conv(x) + s.b))


SQUARE = (normal(6, 6),)


@case("stream_enters_graph", norm=bn1(6), w=param(6, 6), b=param(6), args=SQUARE)
def addmm_as_second_factor(s, x):
    return torch.addmm(s.b, s.w, s.norm(x))


@case("stream_enters_graph", norm=bn1(6), w=param(6, 6), args=(normal(6, 6), normal(6, 6, seed=2)))
def addmm_as_what_is_added(s, x, z):
    return torch.addmm(s.norm(x), z, s.w)


@case("stream_enters_graph", norm=bn1(6), w=param(6, 6), b=param(6), args=SQUARE)
def addmm_of_another_axis(s, x):
    return torch.addmm(s.b, s.norm(x).t(), s.w)


@case("shift_blocked", norm=bn1(6), w=param(6, 6), args=SQUARE)
def matmul_of_another_axis(s, x):
    return s.norm(x).t() @ s.w


@case("shift_blocked", norm=bn1(6), w=param(6, 6), args=SQUARE)
def matmul_as_second_factor(s, x):
    return s.w @ s.norm(x)


@case("no_bias", norm=bn1(6), w=param(6, 6, 6), args=SQUARE)
def matmul_with_a_stack(s, x):
    return s.norm(x) @ s.w


@case("stream_enters_graph", norm=bn(6), conv=conv(6, 4, 1), args=(normal(2, 6, 6, 6),))
def convolution_of_another_axis(s, x):
    return s.conv(s.norm(x).transpose(1, 2))


@case(
    "stream_enters_graph",
    norm=bn(6),
    conv=lambda: nn.ConvTranspose2d(6, 4, 1),
    args=(normal(2, 6, 6, 6),),
)
def transposed_convolution_of_another_axis(s, x):
    return s.conv(s.norm(x).transpose(1, 2))


SEQUENCE = (normal(4, 6, 7),)


@case("nonlinear_writer", norm=bn1(6), conv=lambda: nn.Conv1d(12, 4, 1), args=SEQUENCE)
def joined_with_itself_pooled(s, x):
    h = s.norm(torch.relu(x))
    pooled = F.avg_pool1d(h, 3, 1, 1, count_include_pad=False)
    return s.conv(torch.cat([h, pooled], 1))


@case("nonlinear_writer", norm=bn1(6), conv=lambda: nn.Conv1d(12, 4, 1), args=SEQUENCE)
def joined_with_its_negative(s, x):
    h = s.norm(torch.relu(x))
    return s.conv(torch.cat([h, -h], 1))


@case("nonlinear_writer", norm=bn1(6), conv=lambda: nn.Conv1d(6, 4, 1), args=SEQUENCE)
def halves_that_are_joined_the_other_way_round(s, x):
    first, second = s.norm(torch.relu(x)).split(3, 1)
    return s.conv(torch.cat([second, first], 1))


@case("raw_reader", norm=bn1(6), conv=lambda: nn.Conv1d(6, 6, 1), args=SEQUENCE)
def beside_a_convolution_that_is_added_twice(s, x):
    c = s.conv(x)
    return torch.relu(s.norm(x) + (c + c))


@case("raw_reader", norm=bn1(6), w=param(6, 6), args=(normal(4, 6),))
def beside_a_linear_whose_bias_depends_on_data(s, x):
    return torch.relu(F.linear(x, s.w, x.sum(0)) + s.norm(x))


@case("raw_reader", norm=bn1(6), w=param(6, 6), args=(normal(4, 6), normal(6)))
def beside_a_linear_with_a_bias_from_outside(s, x, b):
    return torch.relu(F.linear(x, s.w, b) + s.norm(x))
