"""Norms written by hand, near-misses of norms, other precisions, and regions that hide their operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.passes.building import Collection, D, normal, param

ATTACKS = attack = Collection()

#: Two bfloat16 results: each rounds weights, inputs and outputs by 2**-9, and the norm magnifies it.
BFLOAT16 = 8 * 2**-8
EPS = 0.1


def cubes():
    return (normal(D, D, 5), normal(D, D, 5, seed=2))


@attack(1)
def by_mean_and_variance(s, x):
    h = s.lin(x)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(1)
def by_centred_square(s, x):
    h = s.lin(x)
    c = h - h.mean(2, keepdim=True)
    return s.ln.weight * (c * torch.rsqrt((c * c).mean([-1], keepdim=True) + EPS)) + s.ln.bias


@attack(1)
def by_negative_power(s, x):
    h = s.lin(x)
    c = h - h.mean(-1, True)
    return c * (EPS + c.square().mean(-1, True)) ** -0.5 * 3 + 1


@attack(1)
def channels_first(s, x):
    h = F.conv1d(x.mT, s.lin.weight[..., None], s.lin.bias)
    u = h.mean(1, keepdim=True)
    v = (h - u).pow(2).mean(1, keepdim=True)
    return s.ln.weight[:, None] * ((h - u) / torch.sqrt(v + EPS)) + s.ln.bias[:, None]


@attack(1)
def output_viewed_in_the_order_of_its_input(s, x):
    h = F.conv1d(x.mT, s.lin.weight[..., None], s.lin.bias).mT
    c = h - h.mean(-1, keepdim=True)
    return (c * (c.pow(2).mean(-1, keepdim=True) + EPS).rsqrt()).mT.view(D, -1)


@attack(0, "unusual_form")
def unbiased_variance(s, x):
    h = s.lin(x)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True) + EPS)


@attack(0)
def variance_over_another_axis(s, x):
    h = s.lin(x)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(1, keepdim=True, unbiased=False) + EPS)


@attack(0)
def mean_over_another_axis(s, x):
    h = s.lin(x)
    return (h - h.mean(1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(0)
def mean_over_both_axes(s, x):
    h = s.lin(x)
    c = h - h.mean((1, 2), keepdim=True)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + EPS)


@attack(0)
def mean_without_keepdim(s, x):
    h = s.lin(x)
    c = h - h.mean(-1)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + EPS)


@attack(0, args=cubes)
def mean_of_another_value(s, x, y):
    h, g = s.lin(x), s.lin(y)
    return (h - g.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(0, args=cubes)
def variance_of_another_value(s, x, y):
    h, g = s.lin(x), s.lin(y)
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(g.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(0, "unusual_form")
def eps_outside_the_root(s, x):
    h = s.lin(x)
    return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, unbiased=False) + EPS)


@attack(0)
def eps_twice(s, x):
    h = s.lin(x)
    c = h - h.mean(-1, keepdim=True)
    return c / (torch.sqrt((c * c).mean(-1, keepdim=True) + EPS) + EPS)


@attack(1, extras=lambda: {"eps": torch.zeros(())})
def eps_from_a_buffer(s, x):
    h = s.lin(x)
    c = h - h.mean(-1, keepdim=True)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + s.eps)


@attack(0)
def mean_added(s, x):
    h = s.lin(x)
    c = h + h.mean(-1, keepdim=True)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + EPS)


@attack(0)
def half_the_mean_removed(s, x):
    h = s.lin(x)
    c = torch.sub(h, h.mean(-1, keepdim=True), alpha=0.5)
    return c / torch.sqrt((c * c).mean(-1, keepdim=True) + EPS)


@attack(0, "raw_reader")
def rms_of_raw_values_beside_a_layer_norm(s, x):
    h = s.lin(x)
    return s.ln(h) + h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)


@attack(0, "raw_reader")
def raw_values_over_the_root_of_the_variance(s, x):
    h = s.lin(x)
    return s.ln(h) + h * torch.rsqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(0, "raw_reader")
def mean_of_the_norm_is_read_again(s, x):
    h = s.lin(x)
    u = h.mean(-1, keepdim=True)
    return (h - u) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS), u


@attack(0, "mutated")
def changed_between_mean_and_difference(s, x):
    h = s.lin(x)
    u = h.mean(-1, keepdim=True)
    h[..., 0] = 1
    return (h - u) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@attack(1)
def scale_that_depends_on_data(s, x):
    h = s.lin(x)
    return F.layer_norm(h, (D,)) * (1 + s.lin2(x)) + s.lin2(x)


@attack(1)
def scale_per_token(s, x):
    h = s.lin(x)
    return F.layer_norm(h, (D,)) * x[..., :1]


@attack(1)
def tiny_eps(s, x):
    return F.layer_norm(s.lin(x), (D,), eps=1e-12)


@attack(1)
def negative_eps(s, x):
    return F.layer_norm(s.lin(x) * 3, (D,), eps=-1e-3)


@attack(1)
def bias_without_weight(s, x):
    return F.layer_norm(s.lin(x), (D,), None, s.ln.bias)


@attack(1, tolerance=2e-6)
def single_precision(s, x):
    return F.layer_norm(F.linear(x.float(), s.lin.weight.float(), s.lin.bias.float()), (D,))


@attack(1, tolerance=2e-2)
def half_precision_stream_with_wide_weights(s, x):
    h = F.linear(x.bfloat16(), s.lin.weight.bfloat16(), s.lin.bias.bfloat16())
    return F.layer_norm(h.float(), (D,), s.ln.weight.float(), s.ln.bias.float()).bfloat16() + h.shape[0]


@attack(1, tolerance=2e-2)
def half_precision_stream_normalized_in_single(s, x):
    h = F.linear(x.bfloat16(), s.lin.weight.bfloat16())
    w = h.float()
    c = w - w.mean(-1, keepdim=True)
    return (c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + EPS)).to(h.dtype) * s.ln.weight.bfloat16()


@attack(0, "nonlinear_writer", tolerance=0.0)
def stream_rounded_to_eight_bits(s, x):
    h = F.linear(x.float(), s.lin.weight.float())
    return F.layer_norm(h.to(torch.float8_e4m3fn).float(), (D,))


@attack(0, "inner_graph", tolerance=0.0, compiled=1, compiled_tolerance=BFLOAT16)
def autocast(s, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = F.linear(x.float(), s.lin.weight.float(), s.lin.bias.float())
    return F.layer_norm(h.float(), (D,))


@attack(0, "narrow_values inner_graph", tolerance=0.0, compiled=1, compiled_tolerance=BFLOAT16)
def autocast_around_the_norm(s, x):
    h = F.linear(x.float(), s.lin.weight.float(), s.lin.bias.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.layer_norm(F.linear(h, s.lin2.weight.float() @ s.lin.weight.float().t()), (D,))
    return y.float() + F.layer_norm(F.linear(y.float(), y[0].float()), (D,))


@attack(2, compiled=0)
def checkpointed(s, x):
    h = s.lin(x)
    h = checkpoint(lambda v: v + s.lin2(s.ln(v)[..., :5]), h, use_reentrant=False)
    return s.ln2(h)


@attack(0, "raw_reader")
def branch_reads_the_values(s, x):
    h = s.lin(x)
    y = torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (h,))
    return s.ln(h) + y


@attack(0, "inner_graph")
def branch_writes_the_values(s, x):
    h = s.lin(x)
    y = torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v + 1, (h,))
    return s.ln(y)


@attack(1)
def without_gradients_inside(s, x):
    with torch.no_grad():
        h = s.lin(x)
    return s.ln(h)


@attack(2, extras=lambda: {"rms": nn.RMSNorm(D)})
def rms_norm_of_other_values(s, x):
    h = s.lin(x)
    return s.ln(h) + s.rms(s.lin2(x)), s.ln2(s.lin2(x * 2) + h)


@attack(0, extras=lambda: {"gn": nn.GroupNorm(2, D), "inorm": nn.InstanceNorm1d(D)})
def other_norms(s, x):
    h = s.lin(x).mT
    return s.gn(h), s.inorm(h)


@attack(1, extras=lambda: {"w": param(D, D)})
def stacked_norms_of_one_value(s, x):
    h = s.lin(x)
    n = F.layer_norm(h, (D,))
    return F.linear(n - n.mean(-1, keepdim=True), s.w)


@attack(0, "raw_reader", args=lambda: (normal(5),))
def its_own_weight(s, x):
    """One row, whose norm is scaled by the row itself."""
    h = s.lin(x)
    return F.layer_norm(h, (D,), h)


@attack(0, "raw_reader", args=lambda: (normal(5),))
def its_own_bias(s, x):
    h = s.lin(x)
    return F.layer_norm(h, (D,), None, h)
