"""Norms and the weights beside them: sums of both, whichever way they are written, and near misses."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import Cases, bn, bn1, conv, image, linear, normal, param

case = Cases()


def same(groups: int = 1, size: int = 3, **kwargs: object) -> object:
    return conv(6, 6, size, padding=size // 2, groups=groups, **kwargs)


for _groups, _size in ((1, 1), (2, 3), (6, 3), (6, 7)):

    @case(norm=bn(6), conv=same(_groups, _size))
    def of_a_convolution_and_its_input(s, x):
        return torch.relu(s.norm(s.conv(x) + x))


@case(norm=bn(6), conv=same(6, bias=False))
def of_an_input_and_its_convolution(s, x):
    return torch.relu(s.norm(x + s.conv(x)))


@case(norm=bn(6), a=same(6), b=same(6, 1))
def of_two_convolutions_and_their_input(s, x):
    """RepViT's token mixer."""
    return torch.relu(s.norm((s.a(x) + s.b(x)) + x))


@case(norm=bn(6), one=bn(6), a=same(6), b=same(6, 1))
def of_a_norm_and_two_convolutions_and_their_input(s, x):
    return torch.relu(s.norm((s.one(s.a(x)) + s.b(x)) + x))


@case(norm=bn(6), a=same(6), b=same(6, 1))
def of_an_input_added_first(s, x):
    return torch.relu(s.norm((x + s.a(x)) + s.b(x)))


@case(norm=bn(6), a=same(), b=same(6, 1))
def of_an_input_added_twice(s, x):
    return torch.relu(s.norm(torch.add(s.a(x) - x, x, alpha=0.5)))


@case(norm=bn(6), conv=same())
def of_a_difference(s, x):
    return torch.relu(s.norm(s.conv(x) - x))


@case(norm=bn(6), conv=same(2))
def of_a_difference_the_other_way(s, x):
    return torch.relu(s.norm(x - s.conv(x)))


@case(norm=bn(6), conv=same())
def of_a_multiple(s, x):
    return torch.relu(s.norm(torch.add(x, s.conv(x), alpha=-3)))


@case(norm=bn(6), conv=same(), gamma=param(6, 1, 1))
def of_a_scaled_input(s, x):
    return torch.relu(s.norm(s.conv(x) + s.gamma * (x * 2)))


@case(norm=bn(6), conv=same())
def of_an_input_that_is_negated(s, x):
    return torch.relu(s.norm(s.conv(x) + (-x) / 4))


@case(norm=bn(6), conv=same(), gamma=param(6, 1, 1))
def of_a_sum_that_is_scaled(s, x):
    return torch.relu(s.norm((s.conv(x) + x) * s.gamma))


@case(norm=bn1(6), lin=linear(6, 6), args=(normal(4, 6),))
def of_a_linear_and_its_input(s, x):
    return torch.relu(s.norm(s.lin(x) + x))


@case(norm=bn1(6), conv=lambda: nn.Conv1d(6, 6, 3, padding="same", dilation=2), args=(normal(2, 6, 9),))
def of_a_sequence_and_its_convolution(s, x):
    return torch.relu(s.norm(s.conv(x) + x))


@case(
    norm=lambda: nn.BatchNorm3d(6),
    conv=lambda: nn.Conv3d(6, 6, (1, 3, 1), padding=(0, 1, 0)),
    args=(normal(2, 6, 3, 4, 5),),
)
def of_a_volume_and_its_convolution(s, x):
    return torch.relu(s.norm(x + s.conv(x)))


@case(norm=bn(6), conv=same())
def of_a_sum_that_is_pooled(s, x):
    return torch.relu(s.norm(F.avg_pool2d(s.conv(x) + x, 2)))


@case(norm=bn(6), conv=same())
def without_its_own_input(s, x):
    """A convolution whose input is subtracted: what is left without a norm beside it."""
    return torch.relu(s.conv(x) - s.norm(x))


@case(norm=bn(6), conv=same(6))
def from_which_a_convolution_is_taken(s, x):
    return torch.relu(s.norm(x) - s.conv(x))


@case(norm=bn(6, affine=False), conv=same(2, bias=False), s=param(1))
def scaled_difference(s, x):
    return torch.relu(s.s * (s.conv(x) - s.norm(x)))


@case(norm=bn(6), conv=same(), gamma=param(6, 1, 1))
def scaled_norm(s, x):
    return torch.relu(s.conv(x) + s.gamma * -s.norm(x))


@case(norm=bn(6), conv=same())
def halved_norm(s, x):
    return torch.relu(torch.add(s.conv(x), s.norm(x) * 3, alpha=0.5)) + x


@case(norm=bn(6), two=bn(6), conv=same())
def several_norms(s, x):
    return torch.relu((s.norm(x) + s.two(x)) + s.conv(x))


@case(norm=bn(6), two=bn(6), three=bn(6), conv=same(6))
def several_norms_on_both_sides(s, x):
    return torch.relu(s.three(x) - ((s.norm(x) - s.conv(x)) - s.two(x))) * x


@case(norm=bn(6), a=same(), na=bn(6), b=same(1, 1), nb=bn(6))
def three_branches(s, x):
    """RepVGG's, with a difference among them."""
    return torch.relu(s.norm(x) - (s.na(s.a(x)) - s.nb(s.b(x))))


@case(norm=bn(6), a=same(), b=same())
def twice_a_sum(s, x):
    return torch.relu(torch.add(s.norm(x), s.a(x) * torch.tanh(x) + s.b(x), alpha=-2) + x)


@case(norm=bn(6), a=same(), b=same())
def of_a_sum_taken_from_an_input(s, x):
    return torch.relu(s.norm(x - (s.a(x) - 2 * s.b(x))))


@case(norm=bn(6), conv=same(), other=same())
def another_term_between(s, x):
    return torch.relu((s.norm(x) + torch.tanh(x)) + s.conv(x))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=1, stride=2), args=(image(6)[..., :1, :1],))
def of_one_place_and_a_convolution_with_strides(s, x):
    return torch.relu(s.norm(s.conv(x) + x))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 2, padding=1, dilation=2))
def of_an_input_and_a_convolution_of_even_size(s, x):
    return torch.relu(s.norm(s.conv(x) + x))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=(0, 2)), args=(image(6)[..., :3, :3],))
def of_an_input_and_a_convolution_of_another_place(s, x):
    return torch.relu(s.norm(F.pad(s.conv(x), (0, 0, 0, 2))[..., :3] + x))


@case("raw_reader", norm=bn(6), conv=conv(6, 6, 3, padding=1, padding_mode="reflect"))
def of_an_input_and_a_convolution_of_what_is_padded(s, x):
    return torch.relu(s.norm(s.conv(x) + x))


@case("raw_reader", norm=bn(6), conv=same())
def of_an_input_and_a_convolution_that_is_read_elsewhere(s, x):
    h = s.conv(x)
    return torch.relu(s.norm(h + x)) + h


@case("raw_reader", norm=bn(6), conv=same())
def of_a_sum_that_is_read_elsewhere(s, x):
    h = s.conv(x) + x
    return torch.relu(s.norm(h)) + h


@case("raw_reader", norm=bn(6), conv=same())
def of_an_input_and_a_convolution_of_its_double(s, x):
    return torch.relu(s.norm(s.conv(2 * x) + x))


@case("raw_reader", norm=bn(6), conv=same())
def beside_nothing_of_a_convolution(s, x):
    """A multiple of zero, and no difference can be divided by it."""
    return torch.relu(torch.add(s.norm(x), s.conv(x), alpha=0))


@case("raw_reader", norm=bn(6), w=same(), a=same())
def of_an_input_and_a_convolution_whose_weight_is_data(s, x):
    weight = s.w.weight * x.mean()
    return torch.relu(s.norm(F.conv2d(x, weight, padding=1) + x))


@case(norm=bn(6), a=same(), b=same())
def from_which_a_sum_is_taken(s, x):
    """The sum changes its sign."""
    return torch.relu(s.norm(x) - (s.a(x) + torch.tanh(s.b(x))))


@case("raw_reader", norm=bn1(6), lin=linear(6, 6), args=(normal(4, 6, 6),))
def of_a_linear_along_another_axis(s, x):
    return torch.relu(s.norm(x + s.lin(x)))


@case("channel_gate", norm=bn(6), conv=same(), gate=conv(6, 6, 1))
def of_an_input_that_a_gate_scales(s, x):
    return torch.relu(s.norm(s.conv(x) + x * torch.sigmoid(s.gate(x).mean((2, 3), keepdim=True))))


@case("channel_gate", norm=bn(6), conv=same(), args=(image(6)[:1],))
def of_an_input_that_one_gate_scales(s, x):
    """A factor for each channel, which is no weight."""
    return torch.relu(s.norm(s.conv(x) + x * x.mean((2, 3), keepdim=True)))


@case("raw_reader", norm=bn(6), conv=same(), args=(image(6)[:1],))
def beside_what_one_gate_scales(s, x):
    return torch.relu(s.conv(x) + s.norm(x) * x.mean((2, 3), keepdim=True))


@case("nonlinear_writer", norm=bn1(6), args=(normal(4, 6),))
def averaged_over_the_batch(s, x):
    """What reads the norm has no axis left where the channels were."""
    return torch.relu(s.norm(torch.tanh(x)).mean(0))


@case(norm=bn(6), conv=same(6), g=param(6, 1, 1, 1))
def of_an_input_and_a_weight_that_is_made_of_others(s, x):
    return torch.relu(s.norm(F.conv2d(x, s.conv.weight * s.g, s.conv.bias, padding=1, groups=6) + x))


@case("mutated", norm=bn(6), conv=same(), w=param(6, 1, 1))
def of_an_input_that_is_written_to(s, x):
    """Between the convolution and the sum."""
    h = torch.tanh(x)
    made = s.conv(h)
    h.view(4, 6, 49).mul_(s.w[..., 0])
    return torch.relu(s.norm(made + h))
