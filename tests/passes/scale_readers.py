"""Norms whose weight and bias go into what reads them, and readers that cannot take them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import Cases, conv, linear, normal, param
from tests.passes.scale_norms import FIRST, channels_first, ln, rms

case = Cases()

ROWS, IMAGE = (normal(4, 5, 6),), (normal(2, 6, 4, 4),)


@case(norm=ln(), lin=linear(6, 4), args=ROWS)
def linear_layer(s, x):
    return s.lin(s.norm(x))


@case(norm=ln(), lin=linear(6, 4, bias=False), args=ROWS)
def linear_layer_that_gets_a_bias(s, x):
    return s.lin(s.norm(x))


@case(norm=rms(), a=linear(6, 4), b=linear(6, 3, bias=False), args=ROWS)
def several_layers(s, x):
    h = s.norm(x)
    return s.a(h), s.b(h), torch.zeros_like(h)


@case(norm=ln(), mha=lambda: nn.MultiheadAttention(6, 2, batch_first=True), args=ROWS)
def attention(s, x):
    h = s.norm(x)
    return s.mha(h, h, h)[0].contiguous()


@case(norm=rms(), w=param(6, 5), args=ROWS)
def product(s, x):
    return s.norm(x) @ s.w


@case(norm=rms(), w=param(5, 6), args=ROWS)
def product_with_a_transposed_weight(s, x):
    return s.norm(x) @ s.w.t()


@case("no_bias", norm=ln(), w=param(6, 5), args=ROWS)
def product_has_no_bias(s, x):
    return s.norm(x) @ s.w


@case(norm=ln(), w=param(6, 5), b=param(5), args=(normal(4, 6),))
def addmm(s, x):
    return torch.addmm(s.b, s.norm(x), s.w)


@case(norm=rms(), w=param(6, 5), args=(normal(4, 6), normal(4, 5, seed=2)))
def addmm_of_data(s, x, r):
    return torch.addmm(r, s.norm(x), s.w)


@case("no_bias", norm=ln(), w=param(6, 5), args=(normal(4, 6), normal(4, 5, seed=2)))
def addmm_of_data_takes_no_shift(s, x, r):
    return torch.addmm(r, s.norm(x), s.w)


@case(norm=rms(), w=param(3, 6, 5), args=(normal(3, 4, 6),))
def experts_by_bmm(s, x):
    return torch.bmm(s.norm(x), s.w)


@case(norm=ln(), w=param(3, 6, 5), b=param(3, 1, 5), args=(normal(3, 4, 6),))
def experts_by_baddbmm(s, x):
    return torch.baddbmm(s.b, s.norm(x), s.w)


@case("no_bias", norm=ln(), w=param(3, 6, 5), b=param(3, 1, 5), args=(normal(3, 4, 6),))
def experts_with_a_bias_that_counts_twice(s, x):
    return torch.baddbmm(s.b, s.norm(x), s.w, beta=2)


@case(norm=rms(), w=param(3, 6, 5), args=(normal(4, 6),))
def experts_by_einsum(s, x):
    return torch.einsum("ni,eio->neo", s.norm(x), s.w)


@case(a=rms(), b=rms(), w=param(5, 6, 6), args=ROWS)
def one_weight_that_two_norms_meet_in(s, x):
    return torch.einsum("bti,btj,oij->bto", s.a(x), s.b(x.sin()), s.w)


@case(a=ln(), b=ln(), lin=linear(15, 6), args=(normal(4, 5, 6), normal(4, 5, 3, seed=2)))
def two_norms_that_are_joined(s, x, z):
    return s.lin(torch.cat([s.a(x), z, s.b(x.sin())], -1))


@case("nonlinear_reader", a=ln(), b=ln(), lin=linear(12, 6), args=ROWS)
def two_norms_that_are_joined_where_one_is_read_elsewhere(s, x):
    h = s.a(x)
    return s.lin(torch.cat([h, s.b(x.sin())], -1)), h.relu()


@case("weight_tied", "weight_tied", "weight_tied", a=ln(), b=ln(), lin=linear(12, 6), args=ROWS)
def joined_norms_ahead_of_a_layer_that_is_shared(s, x):
    one = s.lin(torch.cat([s.a(x), s.b(x.sin())], -1))
    return one, s.lin(torch.cat([s.a(x.cos()), x], -1))


@case(norm=ln(), a=linear(3, 4), b=linear(3, 5), args=ROWS)
def split_channels(s, x):
    left, right = s.norm(x).chunk(2, -1)
    return s.a(left), s.b(right)


@case(c=conv(6, 4, 1), args=IMAGE, **FIRST)
def convolution_of_pixels(s, x):
    return s.c(channels_first(s, x))


@case(c=conv(6, 4, 2, stride=2, bias=False), args=IMAGE, **FIRST)
def convolution_of_patches(s, x):
    return s.c(channels_first(s, x))


@case(c=conv(6, 4, 3, groups=2), args=IMAGE, **FIRST)
def grouped_convolution(s, x):
    return s.c(channels_first(s, x))


@case(c=conv(6, 6, 3, groups=6, bias=False), args=IMAGE, **FIRST)
def depthwise_convolution(s, x):
    return s.c(channels_first(s, x))


@case("zero_padding", c=conv(6, 4, 3, padding=1), args=IMAGE, **FIRST)
def padded_convolution(s, x):
    return s.c(channels_first(s, x))


@case(c=conv(6, 4, 3, padding=1, padding_mode="reflect"), args=IMAGE, **FIRST)
def reflected_convolution(s, x):
    return s.c(channels_first(s, x))


@case(c=conv(6, 4, 3, padding=1), norm=rms(), args=IMAGE)
def padded_convolution_of_what_has_no_bias(s, x):
    return s.c(s.norm(x.movedim(1, -1)).movedim(-1, 1))


@case("shift_blocked", c=conv(6, 4, 3), args=IMAGE, **FIRST)
def zeros_padded_ahead(s, x):
    return s.c(F.pad(channels_first(s, x), (1, 1, 1, 1)))


@case("zero_padding", c=lambda: nn.ConvTranspose2d(6, 4, 2), args=IMAGE, **FIRST)
def transposed_convolution(s, x):
    return s.c(channels_first(s, x))


@case(norm=ln(), lin=linear(6, 4), args=ROWS)
def dropout_that_does_nothing(s, x):
    return s.lin(F.dropout(s.norm(x), 0.3, training=False))


@case("nonlinear_reader", norm=ln(), lin=linear(6, 4), args=ROWS)
def dropout(s, x):
    return s.lin(F.dropout(s.norm(x), 0.3, training=True))


@case(norm=ln(), lin=linear(6, 4), args=ROWS)
def mean_over_tokens(s, x):
    return s.lin(s.norm(x).mean(1))


@case("shift_blocked", norm=ln(), lin=linear(6, 4), args=ROWS)
def sum_over_tokens(s, x):
    return s.lin(s.norm(x).sum(1))


@case(norm=ln(), lin=linear(6, 4), args=ROWS)
def a_number_in_between(s, x):
    return s.lin(-s.norm(x)[:, 1:] / 3)


@case(norm=ln(), lin=linear(6, 4), args=ROWS)
def tokens_in_another_order(s, x):
    return s.lin(s.norm(x).transpose(0, 1).reshape(-1, 6))


@case("nonlinear_reader", norm=ln(), lin=linear(6, 6), args=ROWS)
def residual(s, x):
    h = s.norm(x)
    return h + s.lin(h)


@case("norm_is_output", norm=ln(), lin=linear(6, 4), args=ROWS)
def returned(s, x):
    h = s.norm(x)
    return s.lin(h), h


@case("norm_is_output", norm=ln(), lin=linear(6, 4), args=ROWS)
def returned_as_a_view(s, x):
    h = s.norm(x)
    return s.lin(h), h[:, 0].detach().transpose(0, 1)


@case("nonlinear_reader", norm=ln(), args=ROWS)
def product_with_itself(s, x):
    h = s.norm(x)
    return h @ h.mT


@case("nonlinear_reader", norm=ln(), args=(*ROWS, normal(4, 6, seed=2)))
def a_weight_from_outside(s, x, w):
    return F.linear(s.norm(x), w)


@case("weight_tied", norm=ln(), lin=linear(6, 6), args=ROWS)
def written_between_two_readers(s, x):
    h = s.norm(x)
    first = s.lin(h)
    h.mul_(2)
    return first + s.lin(h)
