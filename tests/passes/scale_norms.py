"""Norms with weights of all kinds ahead of a reader that takes them, and who else reads what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import Cases, conv, linear, normal, param

case = Cases()

ROWS, IMAGE = (normal(4, 5, 6),), (normal(2, 6, 4, 4),)


class RMSNorm(nn.Module):
    """As in Llama, or as in Gemma with an offset of 1."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.zeros(width)), offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y * (self.offset + self.weight) if self.offset else y * self.weight


def ln(width: int = 6, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.LayerNorm(width, **kwargs)


def rms(width: int = 6, offset: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: RMSNorm(width, offset)


#: What ``channels_first`` reads.
FIRST = {"weight": param(6), "bias": param(6)}


def channels_first(s: Any, x: torch.Tensor) -> torch.Tensor:
    """As in ConvNeXt."""
    centred = x - x.mean(1, keepdim=True)
    core = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
    return s.weight[:, None, None] * core + s.bias[:, None, None]


@case(norm=rms(6, 1.0), lin=linear(6, 4), args=ROWS)
def weights_that_are_stored_less_one(s, x):
    return s.lin(s.norm(x))


@case(norm=ln(bias=False), lin=linear(6, 4), args=ROWS)
def layer_norm_without_a_bias(s, x):
    return s.lin(s.norm(x))


@case(weight=param(6), lin=linear(6, 4), args=ROWS)
def eps_that_depends_on_the_values(s, x):
    """It stays in the norm."""
    eps = 1e-2 * x.abs().mean()
    return s.lin(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * s.weight)


@case(weight=param(6), eps=param(), lin=linear(6, 4), args=ROWS)
def eps_that_trains(s, x):
    return s.lin(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + s.eps.abs()) * s.weight)


@case(norm=ln(elementwise_affine=False), lin=linear(6, 4), args=ROWS)
def no_weight_at_all(s, x):
    """A number behind it goes into its readers all the same."""
    return s.lin(s.norm(x) * 2)


def _fill(**values: float) -> Callable[[nn.Module], None]:
    def fill(model: nn.Module) -> None:
        for name, value in values.items():
            model.get_parameter(name.replace("__", ".")).data.fill_(value)

    return fill


@case(norm=ln(), lin=linear(6, 4), args=ROWS, prepare=_fill(norm__bias=0.0))
def bias_of_zero(s, x):
    return s.lin(s.norm(x))


@case(norm=ln(), lin=linear(6, 4), args=ROWS, prepare=_fill(norm__weight=0.0))
def weight_of_zero(s, x):
    return s.lin(s.norm(x))


@case("bad_statistics", norm=ln(), lin=linear(6, 4), args=ROWS, prepare=_fill(norm__weight=torch.nan))
def weight_that_is_nan(s, x):
    return s.lin(s.norm(x))


@case("overflow", norm=ln(), lin=linear(6, 4), args=ROWS, prepare=_fill(lin__weight=torch.inf))
def reader_that_is_infinite(s, x):
    return s.lin(s.norm(x))


def _enlarge(model: nn.Module) -> None:
    for value in (model.norm.weight, model.lin.weight):
        value.data.mul_(1e200)


@case("overflow", norm=ln(), lin=linear(6, 4), args=ROWS, prepare=_enlarge)
def weights_whose_product_overflows(s, x):
    return s.lin(s.norm(x)[:, 1:] * 1e-200) * 1e-200


@case(norm=ln(), lin=linear(6, 4, bias=False), first=linear(6, 6), args=ROWS)
def post_norm(s, x):
    return s.lin(s.norm(x + s.first(x)))


@case(a=ln(), b=ln(), first=linear(6, 6), second=linear(6, 4), args=ROWS)
def norm_after_norm(s, x):
    return s.second(s.b(s.first(s.a(x))))


@case("unusual_form", norm=lambda: nn.GroupNorm(2, 6), c=conv(6, 4, 1), args=IMAGE)
def group_norm(s, x):
    return s.c(s.norm(x))


@case("unusual_form", norm=lambda: nn.InstanceNorm2d(6, affine=True), c=conv(6, 4, 1), args=IMAGE)
def instance_norm(s, x):
    return s.c(s.norm(x))


@case("computed_scale", lin=linear(6, 4), other=linear(6, 6), args=ROWS)
def scale_that_depends_on_the_call(s, x):
    return s.lin(F.rms_norm(x, (6,)) * s.other(x[0, 0]))


@case(g=param(), lin=linear(6, 4), args=ROWS)
def one_number_for_all_channels(s, x):
    return s.lin(F.rms_norm(x, (6,)) * s.g)


@case(g=param(1), b=param(1, 1), lin=linear(6, 4), args=ROWS)
def one_number_and_another_that_is_added(s, x):
    return s.lin(F.layer_norm(x, (6,)) * s.g + s.b)


@case("computed_scale", lin=linear(6, 4), args=(*ROWS, normal(1)))
def one_number_that_comes_from_outside(s, x, g):
    return s.lin(F.rms_norm(x, (6,)) * g)


HEADS = (normal(2, 5, 3, 4),)


@case(norm=ln(4), lin=linear(12, 5), args=HEADS)
def one_weight_for_all_heads(s, x):
    return s.lin(s.norm(x).flatten(2))


@case(norm=rms(4), lin=linear(12, 5, bias=False), args=(normal(2, 3, 5, 4),))
def heads_that_are_moved_before_they_are_joined(s, x):
    return s.lin(s.norm(x).transpose(1, 2).reshape(2, 5, 12))


@case(g=param(3, 1), lin=linear(12, 5), args=HEADS)
def one_number_for_each_head(s, x):
    return s.lin((F.rms_norm(x, (4,)) * s.g).flatten(2))


@case("several_axes", g=param(3, 4), lin=linear(12, 5), args=HEADS)
def one_weight_for_each_head(s, x):
    return s.lin((F.rms_norm(x, (4,)) * s.g).flatten(2))


@case("several_axes", norm=lambda: nn.LayerNorm((3, 4)), lin=linear(4, 5), args=HEADS)
def norm_over_several_axes(s, x):
    return s.lin(s.norm(x))


@case("nonlinear_reader", norm=ln(4), lin=linear(6, 5), args=HEADS)
def part_of_what_was_joined(s, x):
    return s.lin(s.norm(x).flatten(2)[..., :6])


@case(c=conv(6, 4, 1), lin=linear(96, 5), args=IMAGE, **FIRST)
def pixels_that_are_joined(s, x):
    h = channels_first(s, x)
    return s.c(h), s.lin(h.flatten(1))


@case(norm=ln(), lin=linear(6, 6), args=ROWS)
def one_layer_behind_one_norm_twice(s, x):
    return s.lin(s.norm(s.lin(s.norm(x))))


@case("weight_tied", "weight_tied", a=ln(), b=ln(), lin=linear(6, 6), args=ROWS)
def one_layer_behind_two_norms(s, x):
    return s.lin(s.a(x)), s.lin(s.b(x.cos()))


@case("weight_tied", norm=ln(), lin=linear(6, 6), args=ROWS)
def layer_that_also_reads_something_else(s, x):
    return s.lin(s.norm(s.lin(x).relu()))


@case(norm=ln(), lin=linear(6, 6), args=ROWS)
def layer_that_also_writes_what_the_norm_reads(s, x):
    """Its weight without a mean is one of its own."""
    return s.lin(s.norm(s.lin(x)))


@case("weight_tied", norm=ln(), table=lambda: nn.Embedding(9, 6), args=(torch.arange(9),))
def tied_head(s, ids):
    return F.linear(s.norm(s.table(ids)), s.table.weight)


@case("weight_tied", w=param(6, 6), args=ROWS)
def norm_whose_weight_is_a_row_of_what_reads_it(s, x):
    return F.linear(F.layer_norm(x, (6,), s.w[0], s.w[1]), s.w)


@case("weight_tied", norm=ln(), lin=linear(3, 4), args=ROWS)
def one_layer_for_both_halves(s, x):
    left, right = s.norm(x).chunk(2, -1)
    return s.lin(left), s.lin(right)


@case(norm=ln(), w=param(18, 6), b=param(18), args=ROWS)
def parts_of_a_packed_weight(s, x):
    h, (q, k, v), (bq, bk, bv) = s.norm(x), s.w.chunk(3), s.b.chunk(3)
    return F.linear(h, q, bq) * F.linear(h, k, bk) + F.linear(h, v, bv)


@case(a=ln(), b=ln(), w=param(18, 6), bias=param(18), args=ROWS)
def parts_of_a_packed_weight_behind_two_norms(s, x):
    (q, kv), (bq, bkv) = s.w.split([6, 12]), s.bias.split([6, 12])
    return F.linear(s.a(x), q, bq), F.linear(s.b(x.sin()), kv, bkv)


@case("weight_tied", "weight_tied", a=ln(), b=ln(), w=param(18, 6), args=ROWS)
def parts_of_a_weight_that_overlap(s, x):
    return F.linear(s.a(x), s.w[:7]), F.linear(s.b(x.sin()), s.w[6:])


@case("weight_tied", "weight_tied", a=ln(), b=ln(), w=param(6, 12), args=ROWS)
def columns_of_a_weight(s, x):
    left, right = s.w.chunk(2, 1)
    return F.linear(s.a(x), left), F.linear(s.b(x.sin()), right)


@case("weight_tied", norm=ln(), w=param(12, 6), args=ROWS)
def part_of_a_weight_that_is_read_whole(s, x):
    return F.linear(s.norm(x), s.w[6:]), F.linear(x, s.w.neg())


@case(
    norm=ln(),
    layer=lambda: nn.TransformerDecoderLayer(6, 2, 12, 0.0, batch_first=True, norm_first=True),
    args=ROWS,
)
def cross_attention(s, x):
    return s.layer(x, s.norm(x.cos()))


@case(
    "weight_dtype",
    norm=ln(),
    w=lambda: torch.arange(-12, 12, dtype=torch.int8).reshape(4, 6),
    step=param(4, 1),
    args=ROWS,
)
def weights_of_few_bits(s, x):
    return F.linear(s.norm(x), s.w.to(x.dtype) * s.step)


@case(first=linear(6, 6), norm=ln(), args=ROWS)
def layer_whose_weight_is_centred_where_it_writes(s, x):
    return F.linear(s.norm(F.linear(x, s.first.weight)), s.first.weight, s.first.bias)


@case("weight_tied", first=linear(6, 6), norm=ln(), args=ROWS)
def layer_whose_weight_is_read_as_it_was_where_it_writes(s, x):
    return F.linear(s.norm(F.linear(x, s.first.weight).relu()), s.first.weight, s.first.bias)


@case("nonlinear_reader", "weight_tied", "weight_tied", first=linear(6, 6), a=ln(), b=ln(), c=ln(), args=ROWS)
def layer_that_two_norms_read_and_a_third_has_centred(s, x):
    h = s.first(x)
    return s.c(h).relu(), F.linear(s.a(x), s.first.weight), F.linear(s.b(x.cos()), s.first.weight)
