"""Networks in which numbers stand before and behind norms: what each norm takes, or why it does not.

The words of a case say, for each norm in execution order, ``took`` or the code of the refusal, or nothing.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.affine_cases import Cases, buffer, linear, normal, param

D = 6
case = Cases()
X = (normal(2, 5, D),)


def ln(**kwargs):
    return lambda: nn.LayerNorm(D, **{"eps": 0.1, **kwargs})


def rms(**kwargs):
    return lambda: nn.RMSNorm(D, **{"eps": 0.1, **kwargs})


def to(**values):
    """Gives buffers their values."""

    def prepare(model):
        for name, value in values.items():
            getattr(model, name).fill_(value)

    return prepare


@case("took", args=X, norm=ln())
def a_number(s, x):
    return s.norm(x * 3.0)


@case("took", args=X, norm=rms())
def a_negative_number(s, x):
    return s.norm(-0.3 * x)


@case("took", args=X, norm=rms(elementwise_affine=False))
def a_sign_without_a_weight(s, x):
    return s.norm(-x).sin()


@case("took", args=X, bias=param(D))
def a_sign_with_a_bias_alone(s, x):
    return F.layer_norm(x / -2.0, (D,), None, s.bias, 0.1).sin()


@case("took", args=X, norm=ln())
def one_factor_after_another(s, x):
    return s.norm(-((x / 3.0) * 2.0))


@case("took", args=X, norm=ln(eps=0.0))
def an_eps_of_zero(s, x):
    return s.norm(x * -3.0)


@case("took", args=X, eps=buffer())
def an_eps_that_is_a_weight(s, x):
    h = x * -3.0
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + s.eps.abs())).sin()


@case("eps_operand", args=(*X, torch.tensor(0.1, dtype=torch.float64)))
def an_eps_that_is_an_input(s, x, eps):
    h = x * 3.0
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)).sin()


@case("took", args=X)
def a_length(s, x):
    return F.normalize(x * -0.01, dim=-1, eps=0.02).sin()


@case("took", args=X, weight=param(D))
def an_eps_outside(s, x):
    h = x * -0.5
    return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 0.1) * s.weight


@case("took", args=(normal(2, 4, 5),), weight=param(4), bias=param(4))
def groups(s, x):
    return F.group_norm(x * -3.0, 2, s.weight, s.bias, 0.1)


@case("took", args=(normal(2, 4, 3, 5),))
def groups_without_a_weight(s, x):
    return F.group_norm(x * -3.0, 2, eps=0.1).sin()


@case("took", args=X)
def stored_in_fewer_coordinates(s, x):
    h = x * 1.5
    square = (h.square().sum(-1, keepdim=True) + h.sum(-1, keepdim=True).square()) / (D + 1)
    return (h * torch.rsqrt(square + 0.1)).sin()


@case("unusual_form", args=(normal(2, 4, 3, 5),), norm=lambda: nn.InstanceNorm2d(4, eps=0.1))
def over_positions(s, x):
    return s.norm(x * 3.0)


@case("took", "took", args=X, first=rms(), second=ln())
def one_product_for_two_norms(s, x):
    h = x * -3.0
    return s.first(h) + s.second(h)


@case("raw_reader", args=X, norm=rms())
def a_stream(s, x):
    """As where a model multiplies its embeddings by the root of the width."""
    h = x * math.sqrt(D)
    return h + s.norm(h).sin()


@case("raw_reader", "raw_reader", args=X, first=rms(), second=rms())
def another_reader_for_one_of_two(s, x):
    h = x * 2.0
    return s.first(h).sin() + s.second(h.transpose(0, 1)).transpose(0, 1) + h.amax()


@case("raw_reader", args=X, norm=rms())
def a_product_that_is_returned(s, x):
    h = x * 2.0
    return h, s.norm(h)


@case("unusual_form", "unusual_form", args=(normal(2, 4, 5),), norm=rms, other=lambda: nn.InstanceNorm1d(4))
def a_norm_that_cannot_beside_one_that_can(s, x):
    h = x * 2.0
    return s.other(h) + F.rms_norm(h, (5,), None, 0.1)


@case("took", args=X, norm=rms(), other=rms(), prepare=lambda m: setattr(m.other, "weight", m.norm.weight))
def a_tied_weight(s, x):
    return s.norm(x * -2.0) + s.norm.weight


@case("took", "", "took", args=X, norm=rms(), other=rms())
def one_norm_at_several_places(s, x):
    return s.norm(s.norm(s.norm(x * -2.0).sin()).sin() * 3.0)


@case("took", args=X, norm=ln())
def moved(s, x):
    return s.norm((x * 3.0).transpose(1, 2).reshape(2, 5, D).unsqueeze(0).detach().mean(2))


@case("", args=X, norm=ln())
def summed(s, x):
    return s.norm((x * 3.0).cumsum(1))


@case("computed_factor", args=X, norm=ln())
def a_number_of_the_call(s, x):
    return s.norm(x * x.amax())


@case("", args=X, norm=ln())
def a_number_for_each_token(s, x):
    return s.norm(x * x.amax(-1, keepdim=True))


@case("", args=X, norm=ln(), gate=param(D))
def a_number_for_each_channel(s, x):
    return s.norm(x * s.gate)


@case("computed_factor", args=(*X, torch.tensor(2.0, dtype=torch.float64)), norm=ln())
def a_number_that_is_an_input(s, x, c):
    return s.norm(x * c)


@case("factor_range", args=X, norm=ln())
def zero(s, x):
    return s.norm(x * 0.0)


@case("factor_range", args=X, norm=ln())
def infinite(s, x):
    return s.norm(x * math.inf)


@case("factor_range", args=X, norm=ln())
def no_number(s, x):
    return s.norm(x * math.nan)


@case("factor_range", args=X, norm=ln())
def large(s, x):
    return s.norm(x * 2.0**129)


@case("factor_range", args=X, norm=ln())
def small(s, x):
    return s.norm(x * 2.0**-129)


@case("factor_range", args=X)
def an_eps_that_vanishes(s, x):
    return F.rms_norm(x * 1e10, (D,), None, 1e-300).sin()


@case("took", args=X, norm=ln())
def large_and_just_right(s, x):
    return s.norm(x * 2.0**127)


@case("dtype_changes", args=X, norm=ln())
def promoted(s, x):
    return s.norm(x.float() * torch.full((1,), 3.0, dtype=torch.float64))


@case("computed_factor", args=X, norm=ln())
def a_whole_number_in_a_tensor(s, x):
    return s.norm(x * torch.full((), 3))


@case("dtype_changes", args=X, norm=ln(), c=buffer(1, 1, 1, 1))
def more_axes(s, x):
    return s.norm(x * s.c)


@case("layout", args=X, norm=ln())
def written_out(s, x):
    return s.norm(x[:1].expand(3, 5, D) * 2.0)


@case("took", args=X, norm=ln())
def in_place(s, x):
    h = x.clone()
    h.mul_(-2.0)
    return s.norm(h)


@case("mutated", args=X, norm=ln())
def written_afterwards(s, x):
    """What was multiplied is another value when the norm runs."""
    h = x.clone()
    view, product = h[:1], h * 2.0
    view += 1.0
    return s.norm(product) + h


@case("mutated", args=X, norm=ln())
def an_input_that_is_written(s, x):
    product = x * 2.0
    x += 1.0
    return s.norm(product)


@case("raw_reader", args=X)
def scaled_by_what_it_reads(s, x):
    h = x[0] * 2.0
    return F.layer_norm(h, (5, D), h, None, 0.1).sin()


@case("", args=X)
def a_factor_of_a_weight(s, x):
    return F.layer_norm(x, (D,), x[0, 0] * 2.0, x[0, 1] * -3.0, 0.1).sin()


@case("raw_reader", args=X)
def a_factor_of_a_shift_and_of_what_is_normalized(s, x):
    h = x[0, 0] * 2.0
    return F.layer_norm(h, (D,), None, h, 0.1).sin()


@case("computed_scale", args=X)
def a_sign_for_a_weight_that_depends_on_data(s, x):
    return F.layer_norm(x * -2.0, (D,), x[0, 0], None, 0.1).sin()


@case("took", args=X)
def a_weight_that_depends_on_data(s, x):
    return F.layer_norm(x * 2.0, (D,), x[0, 0], None, 0.1).sin()


@case("", "took", args=X, first=ln(), norm=ln(), up=linear(D, 4), down=linear(4, D))
def deep_norm(s, x):
    h = s.first(x)
    return s.norm(h * 2.2 + s.down(F.relu(s.up(h))))


@case("took", args=X, norm=ln(), up=linear(D, 4), down=linear(4, D), scale=param(D))
def deep_norm_with_a_negative_number(s, x):
    return s.norm(s.scale * s.down(F.relu(s.up(x))) + x.cos() * -2.2)


@case("nonlinear_writer", args=X, norm=ln(), lin=linear(D, D))
def a_sum_with_what_has_no_weight(s, x):
    return s.norm(x * 2.2 + F.relu(s.lin(x)))


@case("raw_reader", args=X, norm=ln(), lin=linear(D, D))
def a_sum_with_what_is_read_elsewhere(s, x):
    f = s.lin(x)
    return s.norm(x.cos() * 2.2 + f) + f.cos()


@case("raw_reader", args=X, norm=ln(), lin=linear(D, D))
def a_sum_that_is_read_elsewhere(s, x):
    h = x.cos() * 2.2 + s.lin(x)
    return s.norm(h) + h


@case("took", args=X, norm=ln(), table=param(5, D))
def a_sum_with_a_weight(s, x):
    return s.norm(x.cos() * 2.2 + s.table) + s.table


@case("", args=X, norm=ln(), lin=linear(D, D))
def a_sum_of_which_the_type_is_read(s, x):
    return s.norm(torch.ones_like(x.cos() * 2.2 + s.lin(x)) + x)


@case("raw_reader", args=X, norm=ln(), lin=linear(D, 2 * D))
def a_sum_with_two_parts_of_one_value(s, x):
    left, right = s.lin(x).chunk(2, -1)
    return s.norm(x.cos() * 2.2 + (left + right))


@case("took", args=X, norm=ln(), lin=linear(D, D))
def a_sum_with_a_product_of_its_own(s, x):
    return s.norm(x.cos() * 2.2 + s.lin(x) * 0.5)


@case("took", args=X, norm=ln(), lin=linear(D, D))
def a_sum_that_repeats_the_product(s, x):
    return s.norm(x[:1].cos() * 2.2 + s.lin(x))


@case("took", args=X, norm=ln(), one=buffer())
def a_sum_with_one_number_for_all(s, x):
    return s.norm(x.cos() * 2.2 + s.one)


@case("mutated", args=X, norm=ln(), lin=linear(D, D))
def a_sum_with_what_is_written(s, x):
    f = s.lin(x)
    view = f[:1]
    view += 1.0
    return s.norm(x.cos() * 2.2 + f)


@case("", args=X, norm=ln(), lin=linear(D, D))
def a_sum_that_counts_one_term_twice(s, x):
    return s.norm(torch.add(s.lin(x), x.cos() * 2.2, alpha=2))


@case("", args=X, norm=ln())
def a_product_added_to_itself(s, x):
    h = x * 3.0
    return s.norm(h + h)


@case("took", args=X, norm=ln())
def behind(s, x):
    """LayerNorm Scaling."""
    return (s.norm(x) / math.sqrt(3)).sin()


@case("took", args=X, norm=rms())
def before_and_behind(s, x):
    return (s.norm(x * -2.0) * 0.5).sin()


@case("no_weight", args=X)
def behind_without_a_weight(s, x):
    return (F.layer_norm(x, (D,), None, None, 0.1) * 0.5).sin()


@case("computed_scale", args=X)
def behind_a_weight_that_depends_on_data(s, x):
    return (F.layer_norm(x, (D,), x[0, 0], None, 0.1) * 0.5).sin()
