"""Who reads a stream: norms of many spellings, near misses, and everything else that wants its mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.fuzz.network import STEPS, Net
from tests.fuzz.recipe import Step

__all__ = ["NEAR_MISSES", "RAW_TAPS"]

EPS = 1e-5
NEAR_MISSES = {
    "unbiased", "eps_outside", "centred_only", "wrong_statistics", "scaled_mean", "over_two_axes",
    "over_tokens", "half_the_channels", "rms_norm", "rms_by_hand", "l2",
    "behind_a_trained_factor", "two_of_one_product", "of_ranges_that_overlap",
}  # fmt: skip
RAW_TAPS = {"mean_of_channels", "largest", "softmaxed", "compared", "read_by_linear", "squared"}


def norm(*variants):
    """Register a function of network, stream and width that makes a value for others to compute with."""

    def register(function):
        def run(net: Net, step: Step) -> None:
            net.values.append(function(net, net.stream(step), net.width))

        for variant in variants or (function.__name__,):
            STEPS.setdefault("norm", {})[variant] = run
        return function

    return register


def tap(function):
    """Register something that reads the stream and returns what it found beside the outputs."""

    def run(net: Net, step: Step) -> None:
        made = function(net, net.stream(step))
        if made is not None:
            net.extra.append(made)

    STEPS.setdefault("tap", {})[function.__name__] = run
    return function


@norm()
def native(net, h, d):
    return F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS)


@norm()
def without_affine(net, h, d):
    return F.layer_norm(h, (d,), None, None, EPS)


@norm()
def without_bias(net, h, d):
    return F.layer_norm(h, (d,), net.weight(d), None, 1e-6)


@norm()
def in_float32(net, h, d):
    return F.layer_norm(h.float(), (d,), net.weight(d).float(), None, EPS).to(h.dtype)


@norm()
def by_hand(net, h, d):
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + EPS) * net.weight(d) + net.weight(d)


@norm()
def with_var(net, h, d):
    variance, mean = torch.var_mean(h, -1, keepdim=True, unbiased=False)
    return net.weight(d) * ((h - mean) / torch.sqrt(variance + EPS)) + net.weight(d)


@norm()
def cohere(net, h, d):
    x = h.to(torch.float32)
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (net.weight(d).to(torch.float32) * ((x - mean) * torch.rsqrt(variance + EPS))).to(h.dtype)


@norm()
def channels_first(net, h, d):
    x = h.transpose(1, 2)
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + EPS)
    return (net.weight(d, 1) * x + net.weight(d, 1)).transpose(1, 2)


@norm()
def of_pooled(net, h, d):
    return F.layer_norm(h.mean(1), (d,), net.weight(d), net.weight(d), EPS).unsqueeze(1).expand(h.shape)


@norm()
def twice(net, h, d):
    once = F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS)
    return F.layer_norm(once, (d,), net.weight(d), net.weight(d), EPS)


@norm()
def then_linear(net, h, d):
    return F.linear(F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS), net.weight(d, d))


@norm()
def attended(net, h, d):
    """Heads share values where there are three; odd widths have attention written out."""
    x = F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS)
    heads, e = (3, d // 3) if d % 3 == 0 else (1, d)
    q, k = F.linear(x, net.weight(d, d), net.weight(d)), F.linear(x, net.weight(d, d))
    v = F.linear(x, net.weight(e, d)).unsqueeze(1).expand(-1, heads, -1, -1)
    q, k = (y.unflatten(-1, (heads, e)).transpose(1, 2) for y in (q, k))
    if d % 2:
        scores = q @ k.mT / e**0.5 + net.weight(1)
        a = scores.softmax(-1) @ v
    else:
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(a.transpose(1, 2).flatten(2), net.weight(d, d), net.weight(d))


@norm()
def read_by_norms(net, h, d):
    """With this one, approximate rules are allowed; see ``asked`` of the properties."""
    x = F.rms_norm(h, (d,), net.weight(d), EPS)
    return F.rms_norm(F.linear(x, net.weight(d, d)), (d,), net.weight(d), EPS)


@norm()
def of_heads(net, h, d):
    heads = F.linear(h, net.weight(3 * d, d), net.weight(3 * d)).unflatten(-1, (3, d)).transpose(1, 2)
    return F.layer_norm(heads, (d,), net.weight(d), net.weight(d), EPS).sum(1)


@norm()
def of_queries_and_keys(net, h, d):
    packed = F.linear(h, net.weight(6 * d, d)).unflatten(-1, (2, 3, d))
    q, k, v = packed.unbind(-2)
    q, k = (F.layer_norm(x, (d,), net.weight(d), None, EPS) for x in (q, k))
    return (q + k * v).sum(-2)


@norm()
def of_keys_in_front(net, h, d):
    q, k = F.linear(h, net.weight(4 * d, d)).reshape(*h.shape[:-1], 2, 2, d).permute(2, 0, 1, 3, 4).unbind(0)
    return q.sum(2) + F.layer_norm(k.float(), (d,), net.weight(d).float(), None, EPS).to(h.dtype)[:, :, 1]


@norm()
def of_ranges(net, h, d):
    wide = F.linear(h, net.weight(3 * d, d))
    first, second = (F.layer_norm(wide[..., i : i + d], (d,), net.weight(d), None, EPS) for i in (0, d))
    return first + second + wide[..., 2 * d :]


@norm()
def of_ranges_that_overlap(net, h, d):
    wide = F.linear(h, net.weight(3 * d, d))
    first, second = (F.layer_norm(wide[..., i : i + d], (d,), net.weight(d), None, EPS) for i in (0, d - 1))
    return first + second


@norm()
def scaled_after(net, h, d):
    return F.layer_norm(h, (d,), net.weight(d), net.weight(d), EPS) * 0.5


@norm()
def behind_a_factor(net, h, d):
    return F.layer_norm(h * -1.5, (d,), net.weight(d), net.weight(d), EPS)


@norm()
def behind_two_factors(net, h, d):
    moved = (-(h / 3.0)).transpose(0, 1) * 2.0
    return F.layer_norm(moved.transpose(0, 1), (d,), None, net.weight(d), EPS) / 2**0.5


@norm()
def behind_a_trained_factor(net, h, d):
    return F.rms_norm(h * net.weight(1).square(), (d,), net.weight(d), EPS)


@norm()
def of_a_scaled_sum(net, h, d):
    return F.layer_norm(h * 2.2 + F.linear(net.x, net.weight(d, d)), (d,), net.weight(d), net.weight(d), EPS)


@norm()
def two_of_one_product(net, h, d):
    product = h * 0.25
    return F.rms_norm(product, (d,), net.weight(d), EPS) + F.normalize(product, dim=-1)


@norm()
def with_gemma_weight(net, h, d):
    return F.layer_norm(h, (d,), net.weight(d) + 1.0, None, EPS)


@norm()
def rms_norm(net, h, d):
    return F.rms_norm(h, (d,), net.weight(d), EPS)


@norm()
def rms_by_hand(net, h, d):
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS) * net.weight(d)


@norm()
def unbiased(net, h, d):
    return (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True) + EPS)


@norm()
def eps_outside(net, h, d):
    return (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, unbiased=False) + 1e-3)


@norm()
def centred_only(net, h, d):
    return (h - h.mean(-1, keepdim=True)) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)


@norm()
def wrong_statistics(net, h, d):
    return h * torch.rsqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)


@norm()
def scaled_mean(net, h, d):
    return torch.sub(h, h.mean(-1, keepdim=True), alpha=2) * torch.rsqrt(
        h.var(-1, keepdim=True, unbiased=False) + EPS
    )


@norm()
def over_two_axes(net, h, d):
    centred = h - h.mean((1, 2), keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean((1, 2), keepdim=True) + EPS)


@norm()
def over_tokens(net, h, d):
    centred = h - h.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(1, keepdim=True) + 1.0)


@norm()
def half_the_channels(net, h, d):
    return h * torch.rsqrt(h[..., : d // 2].pow(2).mean(-1, keepdim=True) + EPS)


@norm()
def l2(net, h, d):
    return F.normalize(h, dim=-1)


@tap
def shape_only(net, h):
    net.values.append(torch.zeros_like(h) + net.x)


@tap
def type_only(net, h):
    net.values.append(net.x.type_as(h))


@tap
def mean_of_channels(net, h):
    return h.mean(-1)


@tap
def largest(net, h):
    return h.amax(-1)


@tap
def softmaxed(net, h):
    return h.softmax(-1)


@tap
def compared(net, h):
    return (h > 0).to(h.dtype)


@tap
def read_by_linear(net, h):
    net.values.append(F.linear(h, net.weight(net.width, net.width)))


@tap
def squared(net, h):
    return (h * h).sum(-1)


@tap
def weight_itself(net, h):
    return net.weight(net.width, net.width)


@tap
def norm_of_weights(net, h):
    d = net.width
    return F.layer_norm(net.weight(d, d), (d,), net.weight(d), None, EPS)


@tap
def view_of_weights(net, h):
    d = net.width
    return F.layer_norm(net.weight(d, d), (d,), None, None, EPS).t()[1:]


@tap
def as_kernel(net, h):
    """The channels are what a convolution of something else gives."""
    made = F.conv1d(net.x.permute(2, 0, 1), h.permute(2, 0, 1))
    net.streams.append(made[0].t().expand(h.shape))


@tap
def as_depthwise_kernel(net, h):
    """Here every channel convolves another one."""
    tokens = h.shape[1]
    made = F.conv1d(net.x.mT, h[0].t().unsqueeze(1), padding=tokens - 1, groups=net.width)
    net.streams.append(made[..., :tokens].mT)
