"""Somebody reads the values before the norm and sees their mean; or seems to and does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.passes.building import Collection, D, normal, param

ATTACKS = attack = Collection()


@attack(1)
def nobody_reads(s, x):
    return s.ln(s.lin(x))


@attack(2)
def residual(s, x):
    h = s.lin(x)
    h = h + s.lin2(s.ln(h)[..., :5])
    return s.ln2(h)


@attack(0, "raw_reader")
def mean_of_all(s, x):
    h = s.lin(x)
    return s.ln(h), h.mean()


@attack(0, "raw_reader")
def mean_over_channels(s, x):
    h = s.lin(x)
    return s.ln(h) * h.mean(-1, keepdim=True)


@attack(0, "raw_reader")
def mean_over_tokens_then_gelu(s, x):
    h = s.lin(x)
    return s.ln(h), F.gelu(h.mean(1))


@attack(2)
def mean_over_tokens_then_norm(s, x):
    h = s.lin(x)
    return s.ln(h), s.ln2(h.mean(1))


@attack(0, "raw_reader")
def standard_deviation(s, x):
    h = s.lin(x)
    return s.ln(h) + h.std()


@attack(0, "raw_reader")
def softmax_over_channels(s, x):
    h = s.lin(x)
    return s.ln(h), h.softmax(-1)


@attack(0, "raw_reader", extras=lambda: {"w": param(D, D)})
def left_operand_of_a_product(s, x):
    h = s.lin(x)
    return s.ln(h), h @ s.w


@attack(0, "channel_mix")
def gram_matrix(s, x):
    h = s.lin(x)
    return s.ln(h @ h.transpose(1, 2))


@attack(0, "raw_reader channel_mix")
def gram_matrix_beside(s, x):
    h = s.lin(x)
    return s.ln(h), s.ln2(h @ h.transpose(1, 2))


@attack(0, "raw_reader")
def comparison(s, x):
    h = s.lin(x)
    return s.ln(h), h > 3


@attack(0, "raw_reader")
def argmax(s, x):
    h = s.lin(x)
    return s.ln(h), h.argmax(-1)


@attack(0, "raw_reader")
def attention_mask(s, x):
    h = s.lin(x)
    n = s.ln(h)
    return F.scaled_dot_product_attention(n, n, n, attn_mask=h)


@attack(0, "raw_reader", extras=lambda: {"table": param(40, D)})
def index_after_long(s, x):
    h = s.lin(x)
    return s.ln(h), s.table[h.long().abs() % 40]


@attack(1)
def shape_only(s, x):
    h = s.lin(x)
    return s.ln(h) + torch.zeros_like(h) + h.new_ones(h.shape) + h.size(1)


@attack(1)
def dtype_only(s, x):
    h = s.lin(x)
    return s.ln(h) + x.float().sum().type_as(h) + x.mean().to(h)


@attack(0, "stream_is_output")
def returned_in_a_dict(s, x):
    h = s.lin(x)
    return {"last": s.ln(h), "hidden": [(h,)]}


@attack(0, "stream_is_output")
def returned_through_a_view(s, x):
    h = s.lin(x)
    return s.ln(h), h.flatten(0, 1)


@attack(0, "stream_is_output")
def returned_through_a_sum(s, x):
    h = s.lin(x)
    return s.ln(h), h + s.lin2(x)


@attack(0, "stream_is_output")
def returned_after_later_layers(s, x):
    h = s.lin(x)
    h2 = h + s.lin2(s.ln(h)[..., :5])
    return s.ln2(h2), h2.transpose(0, 1)


@attack(0, "raw_reader")
def part_is_read(s, x):
    h = s.lin(x)
    return s.ln(h), h[:, 0].sum()


@attack(0, "channel_mix")
def channel_is_read(s, x):
    h = s.lin(x)
    return s.ln(h), h[..., :1]


@attack(0, "raw_reader")
def rms_norm_reads_it_too(s, x):
    h = s.lin(x)
    return s.ln(h), F.rms_norm(h, (D,))


@attack(0, "raw_reader several_axes")
def norm_over_two_axes_reads_it_too(s, x):
    h = s.lin(x)
    return s.ln(h), F.layer_norm(h, (D, D))


@attack(0, "raw_reader channel_mix")
def norm_over_another_axis_reads_it_too(s, x):
    h = s.lin(x)
    return s.ln(h), s.ln2(h.transpose(1, 2))


@attack(0, "raw_reader stream_enters_graph")
def values_are_the_weight_of_a_norm(s, x):
    h = s.lin(x)
    return s.ln(h) + F.layer_norm(x.sum(-1), (D,), h[0, 0], None)


@attack(0, "raw_reader")
def values_are_the_bias_of_their_own_norm(s, x):
    h = s.lin(x[0, 0])
    return F.layer_norm(h, (D,), s.ln.weight, h)


@attack(0, "channel_gate")
def per_channel_gate(s, x):
    h = s.lin(x)
    return s.ln(h * torch.sigmoid(s.lin2(x)))


@attack(1)
def per_token_gate(s, x):
    return s.ln(s.lin(x) * torch.sigmoid(x[..., :1]) / (1 + x[..., 1:2].abs()))


@attack(0, "raw_reader")
def gate_from_the_values_themselves(s, x):
    h = s.lin(x)
    return s.ln(h * torch.sigmoid(h[..., 0].unsqueeze(-1)))


@attack(0, "nonlinear_writer")
def power(s, x):
    return s.ln(s.lin(x).pow(2))


@attack(0, "nonlinear_writer")
def square_by_product(s, x):
    h = s.lin(x)
    return s.ln(h * h)


@attack(0, "nonlinear_writer")
def absolute(s, x):
    return s.ln(s.lin(x).abs())


@attack(0, "nonlinear_writer")
def divided_by_the_values(s, x):
    return s.ln(2.0 / s.lin(x))


@attack(0, "nonlinear_writer")
def one_minus_the_values(s, x):
    return s.ln(1 - s.lin(x))


@attack(0, "constant_added")
def scalar_added(s, x):
    return s.ln(s.lin(x) + 100.0)


@attack(0, "constant_added", extras=lambda: {"c": param(1)})
def size_one_added(s, x):
    return s.ln(s.lin(x) + s.c)


@attack(0, "constant_added", extras=lambda: {"c": param(D, 1)})
def one_value_per_token_added(s, x):
    return s.ln(s.lin(x) + s.c)


@attack(1)
def scalar_multiplied(s, x):
    return s.ln(-2.0 * s.lin(x) / 3)


@attack(1)
def subtracted_with_alpha(s, x):
    return s.ln(torch.sub(s.lin(x), s.lin2(x), alpha=-2.5))


@attack(1)
def added_to_itself(s, x):
    h = s.lin(x)
    return s.ln(h + h)


@attack(1)
def a_norm_that_nobody_reads(s, x):
    h = s.lin(x)
    s.ln2(h)
    return s.ln(h)


@attack(0, "post_norm stream_enters_graph", args=lambda: (normal(D, D, D),))
def norm_of_norm(s, x):
    return s.ln2(s.ln(x))


@attack(1, "post_norm")
def post_norm(s, x):
    h = s.ln(s.lin(x))
    return s.ln2(h + s.lin2(h[..., :5]))


@attack(2, args=lambda: (normal(D, D, 5), normal(D, D, 5, seed=2)))
def two_towers_meet(s, x, y):
    a, b = s.lin(x), s.lin2(y)
    return s.ln(a), s.ln2(torch.cat([a, b], 1))


@attack(0, "raw_reader", args=lambda: (normal(D, D, 5), normal(D, D, 5, seed=2)))
def two_towers_meet_in_a_product(s, x, y):
    a, b = s.lin(x), s.lin2(y)
    return s.ln(a), s.ln2(b), a @ b.transpose(1, 2)


@attack(2, args=lambda: (normal(D, D, 5), normal(D, D, 5, seed=2)))
def encoder_decoder(s, x, y):
    a = s.ln(s.lin(x))
    h = s.lin2(y)
    return s.ln2(h + F.linear(F.scaled_dot_product_attention(a, a, a), s.lin.weight @ s.lin.weight.t()))


@attack(2, args=lambda: (normal(D, D, D),))
def one_centring_for_two_norms(s, x):
    return s.ln(x * 2), s.ln2(-x)


@attack(0, "stream_enters_graph", args=lambda: (normal(D, D, D),))
def one_norm_is_worth_no_centring(s, x):
    return s.ln(x)


@attack(2)
def one_centring_beside_raw_readers(s, x):
    h = torch.relu(s.lin(x))
    return s.ln(h * 2), s.ln2(h * 3), h, h.mean()


@attack(2)
def one_centring_below_a_split_that_is_returned(s, x):
    h = torch.relu(s.lin(x))
    a, b = h.chunk(2, 1)
    return s.ln(a), s.ln2(b), h


@attack(2)
def one_centring_of_parts(s, x):
    a, b = torch.relu(s.lin(x)).split([2, 4], 1)
    return s.ln(a), s.ln2(b)


@attack(2, "stream_is_output")
def one_centring_where_a_norm_reads_the_raw_values(s, x):
    h = torch.relu(s.lin(x))
    return s.ln(h * 2), s.ln2(h * 3), s.ln(h), h


@attack(0, "raw_reader grouped_weight", args=lambda: (normal(2, D, 7), normal(3, 5)))
def kernel_of_a_depthwise_convolution(s, z, a):
    w = s.lin(a)
    out = F.conv1d(z, w.t().unsqueeze(1), padding=1, groups=D)
    return s.ln(w), s.ln2(out.transpose(1, 2))


@attack(2, args=lambda: (normal(2, 4, 7), normal(4, 3, 5)))
def kernel_of_a_convolution(s, z, a):
    w = s.lin(a)
    return s.ln(w), s.ln2(F.conv1d(z, w.permute(2, 0, 1)).transpose(1, 2))


@attack(1, "raw_reader", args=lambda: (normal(2, 4, 7), normal(4, 3, 5)))
def kernel_of_a_grouped_transposed_convolution(s, z, a):
    w = s.lin(a)
    out = F.conv_transpose1d(z, w.permute(0, 2, 1), groups=2).transpose(1, 2)
    return s.ln(w), out[..., :D] + out[..., D:], s.ln2(s.lin2(a))


@attack(0, "several_axes raw_reader")
def a_norm_over_the_same_axis_and_another(s, x):
    h = s.lin(x).mT
    centred = h - h.mean(1, keepdim=True)
    first = centred * torch.rsqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)
    return first, F.layer_norm(h, (D, D))


@attack(1, args=lambda: (normal(9, 5), torch.tensor([[1, 8, 0], [3, 3, 2]])))
def looked_up_in_a_table_that_is_computed(s, x, ids):
    return s.ln(F.embedding(ids, s.lin(x)))


SQUARE = {"args": lambda: (normal(D, D, 5),), "extras": lambda: {"w": param(D, D), "v": param(D, D)}}


@attack(2, **SQUARE)
def one_centring_beside_a_linear_that_is_added(s, x):
    h = torch.relu(s.lin(x))
    return s.ln(h + F.linear(h, s.w)), s.ln2(h * 2)


@attack(2, **SQUARE)
def one_centring_beside_products_that_are_added(s, x):
    h = torch.relu(s.lin(x))
    return s.ln(h + h @ s.w), s.ln2((h + h @ s.v).view(-1, D))


@attack(3, **SQUARE)
def post_norm_with_parallel_branches(s, x):
    h = F.layer_norm(s.lin(x), (D,), s.w[0], s.w[1])
    return s.ln(h + F.linear(h, s.w)), s.ln2(h + F.linear(h, s.v))


@attack(0, "layout", extras=lambda: {"g": param(D)})
def a_factor_behind_a_slice_before_a_view(s, x):
    return s.ln((s.lin(x)[:, 1:] * s.g).view(-1, D))


@attack(0, "layout", extras=lambda: {"g": param(D)})
def a_factor_behind_an_expanded_value_before_a_view(s, x):
    return s.ln((s.lin(x[:1]).expand(D, D, D) * s.g).view(-1, D))
