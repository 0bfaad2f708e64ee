"""Weights in two roles, weights that are computed, and weights of unusual kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.passes.building import Collection, D, normal, param

ATTACKS = attack = Collection()


def tokens():
    return (torch.arange(D * D).reshape(D, D) % 7,)


def square():
    return (normal(D, D, D),)


@attack(1, args=square, extras=lambda: {"w": param(D, D)})
def same_weight_reads_and_writes(s, x):
    return F.linear(s.ln(F.linear(x, s.w)), s.w)


@attack(1, args=square, extras=lambda: {"w": param(D, D)})
def weight_and_its_transpose(s, x):
    return s.ln(F.linear(x, s.w) + F.linear(x, s.w.t())) @ s.w.t()


@attack(1, args=square, extras=lambda: {"w": param(D, D)})
def weight_is_its_own_input(s, x):
    return s.ln(F.linear(s.w, s.w) + F.linear(x, s.w))


@attack(1, extras=lambda: {"w": param(D, D), "b": param(D)})
def weight_is_both_factors(s, x):
    return s.ln(torch.addmm(s.b, s.w, s.w) + s.lin(x) + s.w @ s.w)


@attack(1, args=square, extras=lambda: {"w": param(D, D)})
def weight_is_also_the_position_table(s, x):
    return s.ln(F.linear(x, s.w, s.w[0]) + s.w + s.w.t()) + s.w


@attack(2, extras=lambda: {"p": param(D)})
def one_parameter_everywhere(s, x):
    h = s.lin(x) + s.p
    h = h + s.p * s.lin2(s.ln(h)[..., :5]) + s.p[None, None] * 2
    return F.layer_norm(h, (D,), s.p, s.p) * s.p


@attack(2)
def shared_block_called_twice(s, x):
    h = s.lin(x)
    h = h + s.lin2(s.ln(h)[..., :5])
    return h.shape[0] * s.ln(h + s.lin2(torch.relu(x)))


@attack(2)
def same_linear_writes_two_streams(s, x):
    return s.ln(s.lin(x)), s.ln2(s.lin(torch.relu(x)) + s.lin2(x))


@attack(1, "raw_reader")
def same_linear_writes_a_raw_stream_too(s, x):
    h = s.lin(torch.relu(x))
    return s.ln(s.lin(x)), s.ln2(h), h.sigmoid()


@attack(1)
def norm_weights_write_the_stream(s, x):
    return s.ln(s.lin(x) * s.ln.weight + s.ln.bias)


@attack(1, "post_norm")
def norm_weight_is_the_layer_scale(s, x):
    return s.ln2(s.ln(s.lin(x)) * s.ln.weight + s.lin2(x))


@attack(1, extras=lambda: {"g": param(D)})
def layer_scale(s, x):
    return s.ln(s.lin(x) + s.g * s.lin2(x))


@attack(1, extras=lambda: {"g": param(D)})
def layer_scale_twice(s, x):
    return s.ln(s.lin(x) + s.g * (s.g * s.lin2(x) * 2))


@attack(0, "raw_reader", extras=lambda: {"g": param(D)})
def layer_scale_of_values_that_are_read(s, x):
    h = s.lin2(x)
    return s.ln(s.lin(x) + s.g * h), h.sigmoid()


@attack(0, "raw_reader channel_gate", extras=lambda: {"g": param(D)})
def layer_scale_on_the_stream_itself(s, x):
    h = s.lin(x)
    return s.ln(h), s.ln2(h * s.g)


@attack(0, "constant_added", extras=lambda: {"g": param(D)})
def layer_scale_of_a_shifted_value(s, x):
    return s.ln(s.g * (s.lin(x) + 1.0))


@attack(1, extras=lambda: {"g": param(D, 1, 1)}, args=lambda: (normal(D, 5, D, D),))
def layer_scale_of_a_convolution(s, x):
    y = F.conv2d(x, s.lin.weight[..., None, None], s.lin.bias) * s.g
    return s.ln(y.permute(0, 2, 3, 1))


@attack(1, extras=lambda: {"g": param(D), "pos": param(1, D, D)})
def layer_scale_of_everything(s, x):
    return s.ln((s.lin(x) + s.pos - s.lin2(x)) * s.g.exp())


@attack(1, extras=lambda: {"g": param(D)})
def layer_scale_that_depends_on_weights_made_later(s, x):
    h = s.lin(x)
    g = s.g.sin() + s.lin2.bias
    return s.ln(h * g)


@attack(1, extras=lambda: {"pos": param(2 * D, D)})
def split_table(s, x):
    a, b = s.pos.split(D, 0)
    return s.ln(s.lin(x) + a + b)


@attack(1, extras=lambda: {"pos": param(2, D, D)})
def unbound_table(s, x):
    a, b = s.pos.unbind(0)
    return s.ln(s.lin(x) + a) + b


@attack(1, extras=lambda: {"pos": param(D, 2 * D)})
def table_split_along_channels(s, x):
    a, b = s.pos.chunk(2, -1)
    return s.ln(s.lin(x) + a * b)


@attack(1, extras=lambda: {"pos": param(D, 3 * D)})
def gates_split_along_channels(s, x):
    shift, scale, gate = s.pos[0].chunk(3)
    return s.ln((s.lin(x) + shift) * scale + s.lin2(x)) * gate


@attack(1, extras=lambda: {"a": param(2, 5), "b": param(D, 2)})
def low_rank_update(s, x):
    return s.ln(F.linear(x, s.lin.weight + 0.5 * (s.b @ s.a), s.lin.bias))


@attack(1, extras=lambda: {"a": param(2, 5), "b": param(D, 2)})
def low_rank_update_beside(s, x):
    return s.ln(s.lin(x) + F.linear(F.linear(x, s.a), s.b) * 0.5)


@attack(1, extras=lambda: {"wn": parametrizations.weight_norm(nn.Linear(5, D))})
def weight_norm(s, x):
    return s.ln(s.wn(x))


@attack(1, extras=lambda: {"on": parametrizations.orthogonal(nn.Linear(D, D))}, args=square)
def orthogonal_weight(s, x):
    return s.ln(s.on(x))


@attack(1, extras=lambda: {"table": param(7, D)}, args=tokens, compiled=0)
def embedding(s, i):
    return s.ln(F.embedding(i, s.table, padding_idx=0, scale_grad_by_freq=True))


@attack(0, "weight_tied", extras=lambda: {"table": param(7, D)}, args=tokens)
def tied_embedding(s, i):
    return F.linear(s.ln(F.embedding(i, s.table)), s.table)


@attack(0, "weight_tied", extras=lambda: {"table": param(7, D)}, args=tokens)
def embedding_with_largest_norm(s, i):
    return s.ln(F.embedding(i, s.table, max_norm=1.0))


@attack(0, "nonlinear_writer", extras=lambda: {"bag": nn.EmbeddingBag(7, D)}, args=tokens)
def embedding_bag(s, i):
    return s.ln(s.bag(i))


@attack(2, extras=lambda: {"table": param(7, D)}, args=tokens)
def embedding_is_centred_once(s, i):
    h = F.embedding(i, s.table)
    return F.linear(s.ln(h * 2) + s.ln2(h), s.table)


@attack(1, extras=lambda: {"table": param(7, D), "pos": param(40, D)}, args=tokens, compiled=0)
def positions_from_a_buffer_of_indices(s, i):
    return s.ln(F.embedding(i, s.table) + s.pos[torch.arange(D) + 2])


@attack(1, extras=lambda: {"pos": torch.zeros(D, D)})
def buffer_is_a_writer(s, x):
    return s.ln(s.lin(x) + s.pos)


@attack(1, prepare=lambda s: s.register_buffer("pos", normal(D, D, mean=3), persistent=False))
def buffer_that_is_not_stored(s, x):
    return s.ln(s.lin(x) + s.pos)


@attack(1)
def table_made_of_constants(s, x):
    i = torch.arange(D, dtype=x.dtype)
    return s.ln(s.lin(x) + ((i[:, None] * i).sin() + 5))


@attack(1)
def constant_of_the_module(s, x):
    return s.ln(s.lin(x) + torch.tensor([1.0, 2, 3, 4, 5, 60], dtype=x.dtype))


@attack(0, "nonlinear_writer", extras=lambda: {"n": torch.arange(D)})
def integers_are_added(s, x):
    return s.ln(s.lin(x) + s.n)


@attack(0, "nonlinear_writer", extras=lambda: {"n": torch.arange(D) % 2 == 0})
def truth_values_are_added(s, x):
    return s.ln(s.lin(x) + s.n)


@attack(0, "narrow_values", extras=lambda: {"n": torch.arange(D)})
def integers_are_scaled(s, x):
    """In float32, in which a third of them is not exact."""
    return s.ln(s.lin(x) + s.n * 0.5) + s.n


@attack(1, extras=lambda: {"n": torch.arange(D)})
def integers_are_scaled_in_a_wide_dtype(s, x):
    return s.ln(s.lin(x) + s.n.to(x.dtype) * 0.5) + s.n


@attack(0, "narrow_values", extras=lambda: {"t": param(D, D)})
def a_narrow_table_is_added(s, x):
    return s.ln(s.lin(x) + s.t.bfloat16())


@attack(1, extras=lambda: {"q": torch.arange(-15, 15).to(torch.int8).reshape(D, 5)})
def quantized_by_hand(s, x):
    return s.ln(F.linear(x, s.q.to(x.dtype) * s.lin.bias[:, None]))


@attack(0, "nonlinear_writer", extras=lambda: {"pos": param(D, D)})
def table_read_by_strides(s, x):
    return s.ln(s.lin(x) + s.pos.as_strided((D,), (1,), 3))


@attack(0, "nonlinear_writer", extras=lambda: {"pos": param(D, D)})
def table_read_by_bits(s, x):
    return s.ln(s.lin(x) + (s.pos.view(torch.int64) & ~255).view(torch.float64))


@attack(1, extras=lambda: {"w": nn.Parameter(torch.zeros(5, D).t())})
def weight_that_is_not_contiguous(s, x):
    return s.ln(F.linear(x, s.w))


def _views(s):
    both = nn.Parameter(normal(2 * D, 5, mean=3))
    s.lin.weight, s.lin2.weight = nn.Parameter(both.data[:D]), nn.Parameter(both.data[D:])
    s.pos = nn.Parameter(both.data[1:2, :1].expand(1, D))


@attack(2, prepare=_views)
def weights_are_views_of_one_tensor(s, x):
    return s.ln(s.lin(x) + s.pos), s.ln2(s.lin2(x)) @ s.lin2.weight


@attack(1, prepare=_views)
def expanded_parameter(s, x):
    return s.ln(s.lin(x) + s.pos) + s.pos


@attack(1, args=square, extras=lambda: {"w": param(D, D, D)})
def batched_weights(s, x):
    return s.ln(torch.bmm(x, s.w) + x @ s.w[0])


@attack(0, "stream_enters_graph", extras=lambda: {"w": param(5)})
def weight_with_one_axis(s, x):
    return s.ln(F.linear(x, s.w))


@attack(0, "constant_added", extras=lambda: {"b": param(1)})
def bias_of_one_value(s, x):
    return s.ln(F.linear(x, s.lin.weight, s.b))


@attack(0, "constant_added", extras=lambda: {"b": param(1), "g": param(D)})
def bias_of_one_value_under_a_scale(s, x):
    return s.ln(F.linear(x, s.lin.weight, s.b) * s.g)


@attack(2)
def addmm_with_factors(s, x):
    h = torch.addmm(s.lin.bias, x[0], s.lin.weight.t(), beta=0.5, alpha=-2)
    return s.ln(h), s.ln2(torch.addmm(h, x[1], s.lin2.weight.t()))


@attack(0, "constant_added", extras=lambda: {"b": param(D, 1)})
def addmm_with_one_value_per_token(s, x):
    return s.ln(torch.addmm(s.b, x[0], s.lin.weight.t()))


@attack(0, "constant_added", extras=lambda: {"b": nn.Parameter(torch.zeros(()))})
def addmm_with_a_scalar(s, x):
    return s.ln(torch.addmm(s.b, x[0], s.lin.weight.t()))


@attack(1, extras=lambda: {"w": param(D, 5, D)})
def baddbmm(s, x):
    return s.ln(torch.baddbmm(s.ln2.bias, x, s.w, beta=2))


@attack(1, extras=lambda: {"w": param(2, 5, 3)}, args=lambda: (normal(3, 5, D),))
def einsum_in_an_odd_order(s, x):
    return s.ln(torch.einsum("od,bdt->tbo", s.lin.weight, x).transpose(0, 1))


@attack(0, "channel_mix", extras=lambda: {"w": param(5, 2, 3)})
def einsum_into_heads(s, x):
    return s.ln(torch.einsum("btd,dhe->bthe", x, s.w).flatten(2))


@attack(0, "channel_mix", args=square, extras=lambda: {"w": param(D, D)})
def einsum_without_sum(s, x):
    return s.ln(torch.einsum("bte,te->bte", x, s.w))


@attack(1, args=lambda: (normal(D, D, 5),), extras=lambda: {"w32": param(D, 5, dtype=torch.float32)})
def parameters_in_another_dtype(s, x):
    return s.ln(F.linear(x, s.w32.double(), s.lin.bias))


@attack(0, "dropout", extras=lambda: {"drop": nn.Dropout(0.5)}, prepare=lambda s: s.drop.train())
def dropout_that_is_still_training(s, x):
    return s.ln(s.drop(s.lin(x)))


@attack(0, "dropout", extras=lambda: {"drop": nn.Dropout(0.5)}, prepare=lambda s: s.drop.train())
def weights_are_dropped(s, x):
    return s.ln(F.linear(x, s.drop(s.lin.weight)))


@attack(1, extras=lambda: {"drop": nn.Dropout1d(0.5)})
def dropout_in_evaluation(s, x):
    return s.ln(s.drop(s.lin(x)) + s.lin2(x))


@attack(1, extras=lambda: {"w": param(D, 5)})
def softmax_of_a_weight(s, x):
    return s.ln(F.linear(x, s.w.softmax(0) + s.w.relu()))


@attack(1, extras=lambda: {"w": param(D, 5)})
def sorted_weight(s, x):
    return s.ln(F.linear(x, s.w.sort(0)[0]) + s.w.max(1).values)


@attack(1, extras=lambda: {"w": param(D, D)})
def norm_of_a_parameter(s, x):
    return s.ln(s.w) + x.sum()


@attack(1, extras=lambda: {"w": param(D, D)})
def norm_of_a_computed_parameter(s, x):
    v = s.w.t() * 2
    return F.linear(s.ln(v), v) + x.sum()


@attack(1, extras=lambda: {"w": param(D, D, dtype=torch.complex128)})
def complex_numbers_elsewhere(s, x):
    return s.ln(s.lin(x)) + (s.w * 1j).real


@attack(0, "nonlinear_writer", extras=lambda: {"w": param(D, dtype=torch.complex128)})
def complex_writer(s, x):
    return s.ln((s.lin(x) + s.w).abs())


@attack(2, extras=lambda: {"w": param(9, D)})
def computed_weight_is_normalized_and_added(s, x):
    """The value of one plan is an operand of the other one."""
    position = s.w[: x.shape[1]].unsqueeze(0).expand(x.shape[0], -1, -1)
    return s.ln(position), s.ln2(position + s.lin(x))


@attack(1, extras=lambda: {"w": param(9, D)})
def computed_weight_is_returned(s, x):
    position = s.w[: x.shape[1]].unsqueeze(0).expand(x.shape[0], -1, -1)
    same = position.double()
    return s.ln(same), same
