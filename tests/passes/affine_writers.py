"""Norms behind the weight that takes them, and near misses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import (
    FROZEN,
    Cases,
    adapted,
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


def _stack(writer: Any, norm: Any, x: torch.Tensor, name: str, *codes: str) -> None:
    def run(s: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(s.norm(s.writer(x)))

    run.__name__ = name
    case(*codes, args=(x,), writer=writer, norm=norm)(run)


for _rank, _size in ((1, (9,)), (2, (6, 7)), (3, (4, 5, 3))):
    _x = normal(2, 6, *_size)
    _conv, _up = getattr(nn, f"Conv{_rank}d"), getattr(nn, f"ConvTranspose{_rank}d")
    _norm = getattr(nn, f"BatchNorm{_rank}d")
    for _groups in (1, 2, 6):
        for _bias in (True, False):
            _options = {"groups": _groups, "bias": _bias}
            _name = f"{_rank}d_groups_{_groups}_{'biased' if _bias else 'plain'}"
            _stack(
                lambda c=_conv, o=_options: c(6, 12, 3, padding=1, stride=2, dilation=1, **o),
                lambda n=_norm: n(12), _x, f"conv_{_name}",
            )  # fmt: skip
            _stack(
                lambda c=_up, o=_options: c(6, 12, 3, padding=1, stride=2, output_padding=1, **o),
                lambda n=_norm: n(12), _x, f"conv_transpose_{_name}",
            )  # fmt: skip

_stack(conv(6, 5, 3, padding="same", dilation=2), bn(), image(), "same_padding")
_stack(conv(6, 5, 3, padding=1, padding_mode="reflect"), bn(), image(), "reflect_padding")
_stack(conv(6, 5, 3), bn(affine=False), image(), "without_affine")
_stack(conv(6, 5, 3), bn(momentum=None), image(), "cumulative_average")
_stack(conv(6, 5, 3), lambda: nn.SyncBatchNorm(5), image(), "synchronised")
_stack(
    conv(6, 5, 3), lambda: nn.InstanceNorm2d(5, affine=True, track_running_stats=True), image(),
    "instance_norm_with_stored_statistics",
)  # fmt: skip
_stack(linear(6, 5), bn1(), normal(4, 6), "linear_of_rows")
_stack(linear(6, 5, bias=False), bn1(), normal(4, 6), "linear_without_bias")
_stack(conv(6, 5, 3), bn(track_running_stats=False), image(), "no_stored_statistics", "batch_statistics")
_stack(linear(7, 6), bn1(6), normal(3, 6, 7), "linear_of_rank_three", "channel_mix")
_stack(linear(6, 6), bn1(6), normal(3, 6, 6), "linear_of_rank_three_with_equal_sizes", "channel_mix")
_stack(linear(6, 6), bn1(6), normal(6, 6, 6), "linear_of_a_cube", "channel_mix")


@case(args=(normal(3, 4, 6),), lin=linear(6, 5), norm=bn1())
def channels_moved_to_the_norm(s, x):
    return s.norm(s.lin(x).transpose(1, 2)).transpose(1, 2)


@case(args=(normal(3, 4, 6),), lin=linear(6, 5, bias=False), norm=bn1())
def tokens_flattened_for_the_norm(s, x):
    h = s.lin(x)
    return s.norm(h.flatten(0, 1)).reshape_as(h)


@case(args=(torch.arange(12).reshape(3, 4),), table=lambda: nn.Embedding(20, 5), norm=bn1())
def embedding(s, i):
    return s.norm(s.table(i).transpose(1, 2))


@case(args=(normal(4, 6),), w=param(5, 6), b=param(5), norm=bn1())
def functional_linear(s, x):
    return s.norm(F.linear(x, s.w, s.b))


@case(args=(normal(4, 6),), w=param(6, 5), b=param(5), norm=bn1())
def addmm(s, x):
    return s.norm(torch.addmm(s.b, x, s.w))


@case(args=(normal(4, 6),), w=param(6, 5), b=param(5), norm=bn1())
def matmul_plus_bias(s, x):
    return s.norm(x @ s.w + s.b)


@case("shift_blocked", args=(normal(4, 6),), w=param(6, 5), norm=bn1())
def matmul_has_no_bias(s, x):
    return torch.relu(s.norm(x @ s.w))


@case("shift_blocked", args=(normal(5, 5),), w=param(5, 5), norm=bn1())
def addmm_that_adds_its_factor(s, x):
    return s.norm(torch.addmm(s.w, x, s.w))


@case("shift_blocked", args=(normal(4, 6),), w=param(6, 5), b=param(5), norm=bn1())
def addmm_that_scales_its_bias(s, x):
    return torch.relu(s.norm(torch.addmm(s.b, x, s.w, beta=2)))


@case(conv=conv(6, 5, 3), g=param(5, 1, 1), norm=bn())
def layer_scale_between(s, x):
    return s.norm(s.conv(x) * s.g)


@case(conv=conv(6, 5, 3, bias=False), norm=bn())
def numbers_between(s, x):
    return s.norm(-(s.conv(x) * 2.5) / 3)


@case("shift_blocked", conv=conv(6, 5, 3, bias=False), norm=bn())
def factor_of_the_call_between(s, x):
    return torch.relu(s.norm(s.conv(x) * x.mean()))


@case(conv=conv(6, 5, 3), norm=bn())
def pooled_between(s, x):
    return s.norm(F.avg_pool2d(s.conv(x), 2))


@case("shift_blocked", conv=conv(6, 5, 3), norm=bn())
def pooled_with_counted_zeros_between(s, x):
    return torch.relu(s.norm(F.avg_pool2d(s.conv(x), 3, 1, 1)))


@case("shift_blocked", conv=conv(6, 5, 3), norm=bn())
def padded_between(s, x):
    return torch.relu(s.norm(F.pad(s.conv(x), (1, 1, 1, 1))))


@case("nonlinear_writer", conv=conv(6, 5, 3), norm=bn())
def max_pool_between(s, x):
    return torch.relu(s.norm(F.max_pool2d(s.conv(x), 2)))


@case("nonlinear_writer", conv=conv(6, 5, 3), norm=bn())
def relu_between(s, x):
    return torch.relu(s.norm(F.relu(s.conv(x))))


@case(a=conv(6, 5, 3), b=conv(6, 5, 3, bias=False), norm=bn())
def behind_a_sum(s, x):
    return s.norm(s.a(x) + s.b(x))


@case(a=conv(6, 5, 3, bias=False), b=conv(6, 5, 3), c=conv(6, 5, 3), norm=bn())
def behind_a_scaled_sum(s, x):
    return s.norm(torch.sub(s.a(x), s.b(x), alpha=3) + s.c(x) / 2)


@case("shift_blocked", a=conv(6, 5, 3), norm=bn())
def behind_a_sum_of_one_value(s, x):
    h = s.a(x)
    return torch.relu(s.norm(h + h))


@case("raw_reader", a=conv(5, 5, 1), norm=bn(), args=(image(5),))
def behind_a_residual_sum_that_goes_on(s, x):
    h = x + s.a(x)
    return h + torch.relu(s.norm(h))


@case("raw_reader", conv=conv(6, 5, 3), norm=bn())
def the_convolution_is_read_elsewhere(s, x):
    h = s.conv(x)
    return torch.relu(s.norm(h)), h


@case("raw_reader", "raw_reader", conv=conv(6, 5, 3), one=bn(), two=bn())
def the_convolution_is_read_by_two_norms(s, x):
    h = s.conv(x)
    return torch.relu(s.one(h)) + torch.relu(s.two(h))


@case("raw_reader", conv=conv(6, 5, 3), norm=bn())
def a_tap_behind_the_norm(s, x):
    h = s.conv(x)
    y = torch.relu(s.norm(h))
    return y * h.mean()


@case(conv=conv(6, 5, 3), one=bn(), two=bn())
def a_convolution_called_twice(s, x):
    return s.one(s.conv(x)) + s.two(s.conv(2 * x))


@case(w=param(5, 6, 1, 1), one=bn(), two=bn(), head=linear(5, 3))
def a_weight_of_two_convolutions(s, x):
    return s.one(F.conv2d(x, s.w)) + torch.relu(s.two(F.conv2d(x, s.w, stride=2)).mean((2, 3), keepdim=True))


@case(w=param(5, 6), norm=bn1(), args=(normal(4, 6),))
def a_weight_that_is_also_returned(s, x):
    return s.norm(F.linear(x, s.w)), s.w * 2


@case(conv=conv(6, 5, 3), one=bn(), two=bn(), three=bn())
def norm_of_norm_of_norm(s, x):
    return s.three(s.two(s.one(s.conv(x))))


@case(conv=conv(6, 5, 3), norm=bn())
def one_norm_called_twice(s, x):
    return s.norm(s.norm(s.conv(x)))


@case(conv=conv(6, 5, 3), **FROZEN)
def frozen_arithmetic(s, x):
    return torch.relu(frozen(s, s.conv(x)))


@case(conv=conv(6, 5, 3, bias=False), running_var=buffer(5), m=buffer(5), g=param(5), b=param(5))
def written_out_with_a_mean(s, x):
    def wide(v):
        return v.view(1, -1, 1, 1)

    h = (s.conv(x) - wide(s.m)) / torch.sqrt(wide(s.running_var) + 1e-3)
    return h * wide(s.g) + wide(s.b)


@case(lin=linear(6, 5), running_var=buffer(5), g=param(5), b=param(5), args=(normal(3, 4, 6),))
def unified_norm(s, x):
    return s.lin(x) / (s.running_var + 1e-5).sqrt() * s.g + s.b


@case(lin=linear(6, 5), norm=bn1(), alpha=param(1), args=(normal(3, 4, 6),))
def rep_batch_norm(s, x):
    h = s.lin(x).transpose(1, 2)
    return (s.norm(h) + s.alpha * h).transpose(1, 2)


@case(lin=linear(6, 5), norm=bn1(), alpha=param(5, 1), args=(normal(3, 4, 6),))
def rep_batch_norm_with_a_vector(s, x):
    h = s.lin(x).transpose(1, 2)
    return (h * s.alpha + s.norm(h)).transpose(1, 2)


@case("raw_reader", lin=linear(6, 5), norm=bn1(), alpha=param(4), args=(normal(3, 4, 6),))
def rep_batch_norm_with_a_factor_per_token(s, x):
    h = s.lin(x).transpose(1, 2)
    return torch.relu(s.norm(h) + s.alpha * h)


@case(conv=conv(6, 5, 3), norm=bn())
def statistics_given_by_keyword(s, x):
    return F.batch_norm(s.conv(x), s.norm.running_mean, s.norm.running_var, eps=0.1, bias=s.norm.bias)


@case("no_rule", conv=conv(6, 8, 1), inst=lambda: nn.InstanceNorm2d(4, affine=True), norm=bn(4))
def half_of_ibn_a(s, x):
    left, right = torch.split(s.conv(x), 4, 1)
    return torch.relu(torch.cat([s.inst(left.contiguous()), s.norm(right.contiguous())], 1))


@case(conv=conv(6, 8, 1, groups=2), one=bn(3), two=bn(4))
def norms_of_ranges(s, x):
    h = s.conv(x)
    return torch.cat([s.two(h[:, 3:7]), torch.relu(h[:, 7:]), s.one(h[:, :3])], 1)


@case("raw_reader", "raw_reader", conv=conv(6, 8, 1), one=bn(5), two=bn(4))
def norms_of_ranges_that_overlap(s, x):
    h = s.conv(x)
    return torch.relu(torch.cat([s.two(h[:, 4:]), s.one(h[:, :5])], 1))


@case("raw_reader", conv=conv(6, 8, 1), one=bn(4))
def a_range_and_the_whole(s, x):
    h = s.conv(x)
    return torch.relu(s.one(h[:, :4])), h.sum((2, 3))


@case(a=conv(6, 3, 1), b=conv(6, 2, 1, bias=False), norm=bn())
def joined_channels(s, x):
    return torch.relu(s.norm(torch.cat([s.a(x), s.b(x)], 1)))


@case("raw_reader", a=conv(6, 3, 1), b=conv(6, 2, 1, bias=False), norm=bn())
def joined_channels_read_elsewhere(s, x):
    a = s.a(x)
    return torch.relu(s.norm(torch.cat([a, s.b(x)], 1))), a


@case("computed_statistics", conv=conv(6, 5, 3), norm=bn())
def statistics_of_the_call(s, x):
    h = s.conv(x)
    return F.batch_norm(h, h.mean((0, 2, 3)), s.norm.running_var, training=False)


@case("computed_statistics", bn=bn(6), conv=conv(6, 6, 3))
def alpha_batch_norm(s, x):
    return torch.relu(adapted(s, s.conv(x)))


@case("computed_statistics", conv=conv(6, 5, 3), norm=bn(), args=(image(), normal(5)))
def a_scale_from_outside(s, x, g):
    return F.batch_norm(s.conv(x), s.norm.running_mean, s.norm.running_var, g, None, False)


def _train(model: nn.Module) -> None:
    model.norm.train()


@case("batch_statistics", conv=conv(6, 5, 3), norm=bn(), prepare=_train)
def a_norm_left_in_training(s, x):
    return torch.relu(s.norm(s.conv(x)))


@case("computed_statistics", conv=conv(6, 5, 3), norm=bn())
def statistics_written_by_the_graph(s, x):
    h = s.conv(x)
    s.norm.running_mean.mul_(0.9).add_(h.mean((0, 2, 3)), alpha=0.1)
    return torch.relu(s.norm(h))


@case("bad_statistics", conv=conv(6, 5, 3), norm=bn(), prepare=lambda m: m.norm.running_mean.fill_(torch.nan))
def nan_statistics(s, x):
    return torch.relu(s.norm(s.conv(x)))


@case("bad_statistics", conv=conv(6, 5, 3), norm=bn(), prepare=lambda m: m.norm.running_var.fill_(-2.0))
def negative_variance(s, x):
    return torch.relu(s.norm(s.conv(x)))


@case("bad_statistics", conv=conv(6, 5, 3), norm=bn(eps=0.0), prepare=lambda m: m.norm.running_var.fill_(0.0))
def no_variance_and_no_eps(s, x):
    n = s.norm  # the operator itself: the module's function refuses such an eps in PyTorch 2.11
    statistics = (n.running_mean, n.running_var, False, 0.1, n.eps, False)
    return torch.relu(torch.batch_norm(s.conv(x), n.weight, n.bias, *statistics))


@case(conv=conv(6, 5, 3), norm=bn(), prepare=lambda m: m.norm.running_var.fill_(0.0))
def zero_variance(s, x):
    return torch.relu(s.norm(s.conv(x)))


@case(conv=conv(6, 5, 3), norm=bn(), prepare=lambda m: m.norm.reset_parameters())
def never_trained(s, x):
    return torch.relu(s.norm(s.conv(x)))


@case("mutated", conv=conv(6, 5, 3), norm=bn())
def the_result_is_written(s, x):
    h = s.conv(x)
    view = h.view(-1)
    y = s.norm(h)
    view[3:9].add_(1.0)
    return torch.relu(y), h


@case(conv=conv(6, 5, 3), norm=bn())
def the_result_of_the_norm_is_written(s, x):
    y = s.norm(s.conv(x))
    y.mul_(2)
    return y.relu_()


@case("raw_reader", conv=conv(6, 5, 3), norm=bn())
def a_value_further_up_is_read_elsewhere(s, x):
    h = s.conv(x)
    return torch.relu(s.norm(h.transpose(2, 3))), h.sum(1)


@case("grouped_weight", args=(normal(2, 4, 7), normal(4, 5, 3)), lin=linear(3, 3), norm=bn1(10))
def a_grouped_kernel_that_depends_on_data(s, z, a):
    return torch.relu(s.norm(F.conv_transpose1d(z, s.lin(a), groups=2)))


@case("nonlinear_writer", args=(normal(2, 4, 7), normal(4, 3, 6)), lin=linear(6, 5), norm=bn1())
def a_kernel_that_depends_on_data(s, z, a):
    return torch.relu(s.norm(F.conv1d(z, s.lin(a).permute(2, 0, 1))))


@case("channel_gate", args=(normal(1, 6, 7, 7),), conv=conv(6, 5, 3), gate=conv(6, 5, 1), norm=bn())
def a_gate_of_one_image(s, x):
    gate = torch.sigmoid(s.gate(x.mean((2, 3), keepdim=True)))
    return torch.relu(s.norm(s.conv(x) * gate))


@case("channel_gate", conv=conv(6, 5, 3), g=param(5, 1, 1), norm=bn())
def a_factor_that_widens(s, x):
    h = F.conv2d(x.float(), s.conv.weight.float(), s.conv.bias.float())
    return torch.relu(s.norm(h * s.g))


@case("channel_gate", args=(normal(6, 7),), conv=lambda: nn.Conv1d(6, 5, 3), g=param(1, 5, 1), norm=bn1())
def a_factor_that_adds_an_axis(s, x):
    return torch.relu(s.norm(s.conv(x) * s.g))


@case("raw_reader", conv=lambda: nn.Conv1d(6, 10, 1), norm=bn1(), args=(normal(4, 6, 7),))
def halves_that_are_added(s, x):
    first, second = s.conv(x).chunk(2, 1)
    return torch.relu(s.norm(first + second))


@case("raw_reader", conv=lambda: nn.Conv1d(6, 10, 1), norm=bn1(10), args=(normal(4, 6, 7),))
def halves_that_change_places(s, x):
    first, second = s.conv(x).chunk(2, 1)
    return torch.relu(s.norm(torch.cat([second, first], 1)))


@case("layout", lin=linear(6, 5, bias=False), norm=bn1(), args=(normal(4, 3, 6),))
def a_number_behind_a_slice_before_a_view(s, x):
    return torch.relu(s.norm((s.lin(x)[:, 1:] * 2.0).view(-1, 5)))


@case("layout", lin=linear(6, 5), **FROZEN, args=(normal(4, 8, 6),))
def by_hand_over_every_other_row_of_what_is_turned(s, x):
    """The norm's own result has no gaps and lies by columns, which neither its input nor a copy does."""
    scale = s.weight * (s.running_var + 1e-5).rsqrt()
    h = s.lin(x).transpose(1, 2)[:, :, ::2]
    return h * scale[:, None] + (s.bias - s.running_mean * scale)[:, None]


@case("dtype_changes", lin=linear(6, 5), **FROZEN, prepare=lambda m: m.lin.float(), args=(normal(4, 6),))
def by_hand_in_a_wider_dtype(s, x):
    scale = s.weight * (s.running_var + 1e-5).rsqrt()
    return torch.relu(s.lin(x.float()) * scale + (s.bias - s.running_mean * scale))
