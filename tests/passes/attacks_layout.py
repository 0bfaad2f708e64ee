"""Where the channels are: other axes, other orders, joined, split, resampled, of symbolic size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.passes.building import Collection, D, normal, param

ATTACKS = attack = Collection()


def image():
    return (normal(D, 5, D, D),)


def square():
    return (normal(D, D, D),)


@attack(0, "channel_mix")
def norm_over_the_tokens(s, x):
    return s.ln(s.lin(x).transpose(1, 2))


@attack(0, "stream_enters_graph")
def norm_over_the_tokens_of_the_input(s, x):
    return s.ln(F.linear(x, s.lin.weight).transpose(1, 2))


@attack(0, "channel_mix")
def norm_over_the_batch(s, x):
    return s.ln(s.lin(x).permute(1, 2, 0))


@attack(1)
def transposed_twice(s, x):
    return s.ln(s.lin(x).transpose(0, 2).permute(2, 1, 0).mT.mT)


@attack(1, extras=lambda: {"w": param(D, 5)})
def channels_first(s, x):
    return s.ln((s.w @ x.transpose(1, 2)).transpose(1, 2))


@attack(1, extras=lambda: {"w": param(D, 5)})
def output_is_viewed(s, x):
    return s.ln((s.w @ x.transpose(1, 2)).transpose(1, 2)).view(-1) * 2


@attack(0, "several_axes")
def norm_over_two_axes(s, x):
    return F.layer_norm(s.lin(x), (D, D))


@attack(1, extras=lambda: {"one": nn.Linear(5, 1), "n1": nn.LayerNorm(1)})
def one_channel(s, x):
    return s.n1(s.one(x) + 100 * s.one(x))


@attack(1, args=lambda: (normal(1, 1, 5),), extras=lambda: {"g": param(D)})
def one_token(s, x):
    return s.ln(s.lin(x) * s.g + s.lin2(x))


@attack(2)
def tokens_mixed_by_a_share(s, x):
    h = torch.lerp(s.lin(x), s.lin2(x), x[..., :1].sigmoid())
    return s.ln(h), s.ln2(h)


@attack(1)
def tokens_put_where_a_mask_says(s, x):
    h = s.lin(x)
    return s.ln(h.masked_scatter((x[..., 0] > 0).unsqueeze(-1).expand_as(h), s.lin2(x)))


@attack(1)
def tokens_put_where_indices_say(s, x):
    h, i = s.lin(x), x[:, 0, 0].argsort()[:3]
    return s.ln(h.index_copy(0, i, s.lin2(x)[:3]).index_put((i, i), s.lin2(x)[0, :3], accumulate=True))


@attack(1)
def tokens_that_experts_return(s, x):
    h = s.lin(x)
    return s.ln(torch.zeros_like(h).index_add(0, torch.zeros(D, dtype=torch.long), s.lin2(x)) + h)


@attack(0, "channel_mix", extras=lambda: {"left": nn.Linear(5, 3), "rest": nn.Linear(5, 3)})
def joined_channels(s, x):
    return s.ln(torch.cat([s.left(x), s.rest(x)], -1))


@attack(2, extras=lambda: {"wide": nn.Linear(5, 2 * D)})
def split_channels(s, x):
    a, b = s.wide(x).chunk(2, -1)
    return s.ln(a), s.ln2(b)


@attack(1, "raw_reader", extras=lambda: {"wide": nn.Linear(5, 3 * D)})
def split_channels_of_which_some_are_read(s, x):
    a, b, c = s.wide(x).chunk(3, -1)
    return s.ln(a), s.ln2(b) + b.relu() + c


@attack(0, "channel_mix", extras=lambda: {"left": nn.Linear(5, 3), "rest": nn.Linear(5, 3)})
def stacked_channels(s, x):
    return s.ln(torch.stack([s.left(x), s.rest(x)], -1).flatten(-2))


@attack(1)
def stacked_tokens(s, x):
    return s.ln(torch.stack([s.lin(x), s.lin2(x)], -2))


@attack(2)
def joined_and_split_tokens(s, x):
    a, b, c = torch.cat([s.lin(x), s.lin2(x)], 1).split([2, 4, 6], -2)
    return s.ln(a), s.ln2(torch.cat([b, c, b], 1))


@attack(1)
def unbound_tokens(s, x):
    return s.ln(sum(s.lin(x).unbind(1)))


@attack(0, "nonlinear_writer", extras=lambda: {"conv": nn.Conv2d(5, 4 * D, 1)}, args=image)
def pixel_shuffle(s, x):
    return s.ln(F.pixel_shuffle(s.conv(x), 2).permute(0, 2, 3, 1))


@attack(1, extras=lambda: {"wide": nn.Linear(5, D * D)})
def reshape_that_splits_channels(s, x):
    return s.ln(s.wide(x).reshape(D, D, D, D))


@attack(0, "channel_mix")
def reshape_that_merges_channels(s, x):
    return F.layer_norm(s.lin(x).reshape(D, D * D), (D * D,))


@attack(0, "channel_mix")
def reshape_that_swaps_channels(s, x):
    return F.layer_norm(s.lin(x[:, :3]).reshape(D, D, 3), (3,))


@attack(1)
def reshape_around_channels(s, x):
    return s.ln(s.lin(x).reshape(2, 3, -1, 2, D).flatten(0, 2)[:, None].squeeze(1))


@attack(0, "channel_mix", extras=lambda: {"pos": param(D, D)})
def rolled_channels(s, x):
    return s.ln(s.lin(x).roll(1, -1))


@attack(0, "channel_mix")
def flipped_channels(s, x):
    return s.ln(s.lin(x).flip(-1))


@attack(0, "channel_mix")
def gathered_channels(s, x):
    return s.ln(s.lin(x)[..., torch.tensor([5, 4, 3, 2, 1, 1])])


@attack(1)
def rolled_flipped_and_gathered_tokens(s, x):
    h = s.lin(x).roll((1, 2), (0, -2)).flip(1)
    return s.ln(h.index_select(1, torch.tensor([1, 1, 0]))[torch.tensor([[0, 2], [1, 1]])])


@attack(1)
def tokens_by_index(s, x):
    return s.ln((s.lin(x) * 1.0)[:, x[0, :, 0].abs().long() % 2])


@attack(0, "channel_mix", extras=lambda: {"m": torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)})
def filled_with_a_number(s, x):
    return s.ln(s.lin(x).masked_fill(s.m[:, None], 3.0))


@attack(1, extras=lambda: {"m": torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)})
def filled_with_zero(s, x):
    return s.ln(s.lin(x).masked_fill(s.m[:, None], 0.0))


@attack(0, "channel_mix", extras=lambda: {"m": torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)})
def channels_filled_with_zero(s, x):
    return s.ln(s.lin(x).masked_fill(s.m, 0.0))


@attack(1, extras=lambda: {"mask_token": param(1, 1, D)})
def tokens_chosen(s, x):
    return s.ln(torch.where(x[..., :1] > 1, s.lin(x), s.mask_token.expand(D, D, -1)))


@attack(0, "channel_mix")
def channels_chosen(s, x):
    h = s.lin(x)
    return s.ln(torch.where(s.lin2(x) > 0, h, h * 2))


@attack(0, "nonlinear_writer")
def number_chosen(s, x):
    return s.ln(torch.where(x[..., :1] > 1, s.lin(x), 5.0))


@attack(0, "channel_mix")
def padded_with_a_number(s, x):
    return s.ln(F.pad(s.lin(x), (0, 0, 1, 1), value=2.0))


@attack(1)
def padded_with_zero(s, x):
    return s.ln(F.pad(s.lin(x), (0, 0, 1, -1)))


@attack(0, "channel_mix", extras=lambda: {"narrow": nn.Linear(5, D - 2)})
def padded_channels(s, x):
    return s.ln(F.pad(s.narrow(x), (1, 1)))


@attack(1, extras=lambda: {"conv": nn.Conv2d(5, D, 3, 2, 1)}, args=image)
def patches(s, x):
    return s.ln(s.conv(x).flatten(2).transpose(1, 2))


@attack(0, "channel_mix", extras=lambda: {"conv": nn.Conv2d(5, D, 1)}, args=image)
def norm_over_the_width(s, x):
    return s.ln(s.conv(x))


@attack(0, "grouped_weight", extras=lambda: {"conv": nn.Conv1d(D, D, 3, padding=1, groups=2)}, args=square)
def grouped_convolution(s, x):
    return s.ln(s.conv(x).mT)


@attack(
    0,
    "grouped_weight",
    args=square,
    extras=lambda: {"conv": nn.Conv1d(D, D, 3, padding=1, groups=D), "g": param(D)},
)
def depthwise_convolution_and_scale(s, x):
    return s.ln(s.conv(x).mT * s.g)


@attack(
    1, args=square, extras=lambda: {"dw": nn.Conv1d(D, D, 3, padding=1, groups=D), "pw": nn.Conv1d(D, D, 1)}
)
def separable_convolution(s, x):
    return s.ln(s.pw(s.dw(x)).transpose(1, 2))


@attack(1, extras=lambda: {"up": nn.ConvTranspose1d(D, D, 2, 2)}, args=square)
def transposed_convolution(s, x):
    return s.ln(s.up(x).mT)


@attack(0, "grouped_weight", extras=lambda: {"up": nn.ConvTranspose1d(D, D, 2, 2, groups=3)}, args=square)
def grouped_transposed_convolution(s, x):
    return s.ln(s.up(x).mT)


@attack(0, "channel_mix", extras=lambda: {"w": param(D, 5)})
def pooled_without_a_batch(s, x):
    h = s.w @ x.transpose(1, 2)
    return s.ln(F.avg_pool2d(h, (3, 1), 1, (1, 0)).transpose(1, 2))


@attack(1, extras=lambda: {"conv": nn.Conv2d(5, D, 1)}, args=image)
def pooled(s, x):
    h = F.interpolate(
        F.adaptive_avg_pool2d(F.avg_pool2d(s.conv(x), 3, 1, 1), (3, 3)), (4, 4), mode="bilinear"
    )
    return s.ln(h.movedim(1, -1))


@attack(0, "nonlinear_writer", extras=lambda: {"conv": nn.Conv2d(5, D, 1)}, args=image)
def pooled_by_maximum(s, x):
    return s.ln(F.max_pool2d(s.conv(x), 2).permute(0, 2, 3, 1))


@attack(1, extras=lambda: {"bn": nn.BatchNorm1d(D)})
def batch_norm_in_the_stream(s, x):
    return s.ln(s.bn(s.lin(x).mT).mT)


@attack(0, "nonlinear_writer")
def running_sum_along_channels(s, x):
    return s.ln(s.lin(x).cumsum(-1))


@attack(0, "channel_mix")
def summed_channels_repeated(s, x):
    return s.ln(s.lin(x).sum(-1, keepdim=True).expand(-1, -1, D))


@attack(1)
def summed_tokens_repeated(s, x):
    return s.ln(s.lin(x).sum(1, keepdim=True).expand(-1, D, -1).repeat(2, 1, 1).repeat_interleave(2, 0))


@attack(0, "channel_mix")
def repeated_channels(s, x):
    return F.layer_norm(s.lin(x).repeat(1, 1, 2), (2 * D,))


@attack(1, extras=lambda: {"cls": param(1, 1, D), "pos": param(1, D + 1, D)})
def class_token(s, x):
    h = torch.cat([s.cls.expand(D, -1, -1), s.lin(x)], 1) + s.pos
    return s.ln(h[:, 0]), h.shape


@attack(1, extras=lambda: {"bias": param(D, D)})
def relative_positions_by_slice(s, x):
    return s.ln(s.lin(x)[:, ::2][:, -2:] + s.bias[: x.shape[1], :][1:3])


@attack(0, "channel_mix", extras=lambda: {"wide": nn.Linear(5, 2 * D)})
def every_other_channel(s, x):
    return s.ln(s.wide(x)[..., ::2])


@attack(2)
def views_behind_a_centring_of_a_part(s, x):
    """The part lies with gaps, what is centred without: views of it have other strides than before."""
    h = torch.relu(s.lin(x))[:, :4]
    return s.ln(h.transpose(0, 1)), s.ln2(h.unbind(0)[1])


@attack(2, "unusual_form")
def a_norm_that_stays_behind_a_centring_of_a_part(s, x):
    h = torch.relu(s.lin(x))[:, :4]
    t = h.transpose(0, 1)
    kept = (t - t.mean(-1, keepdim=True)) / (t.std(-1, keepdim=True, unbiased=False) + 1e-5)
    return s.ln(h.transpose(1, 2).transpose(1, 2)), s.ln2(h.split(2, 1)[0]), kept
