"""Norms as people write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tests.patterns import late_means

Norm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def llama(x, w, b):
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    return w * h.to(x.dtype)


def t5(x, w, b):
    h = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)
    return w * (h.to(w.dtype) if w.dtype in (torch.float16, torch.bfloat16) else h)


def gemma(x, w, b):
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (h * (1.0 + w.float())).type_as(x)


def native_rms(x, w, b):
    return F.rms_norm(x, x.shape[-1:], w, 1e-6)


def cohere(x, w, b):
    h = x.to(torch.float32)
    mean = h.mean(-1, keepdim=True)
    variance = (h - mean).pow(2).mean(-1, keepdim=True)
    return (w.to(torch.float32) * ((h - mean) * torch.rsqrt(variance + 1e-5))).to(x.dtype)


def deberta(x, w, b):
    h = x.float()
    mean = h.mean(-1, keepdim=True)
    variance = (h - mean).pow(2).mean(-1, keepdim=True)
    return w * ((h - mean) / torch.sqrt(variance + 1e-7)).to(x.dtype) + b


def native_layer(x, w, b):
    return F.layer_norm(x, x.shape[-1:], w, b, 1e-5)


def olmo(x, w, b):
    return F.layer_norm(x.to(torch.float32), x.shape[-1:], None, None, 1e-5).to(x.dtype)


def biased_var(x, w, b):
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(
        x.var(-1, keepdim=True, unbiased=False) + 1e-5
    ) * w + b


def var_and_mean(x, w, b):
    variance, mean = torch.var_mean(x, -1, keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * w + b


RMS_SPELLINGS: dict[str, Norm] = {
    "pow": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6) * w,
    "square": lambda x, w, b: x * torch.rsqrt(torch.square(x).mean(-1, True) + 1e-6) * w,
    "x*x": lambda x, w, b: x * torch.rsqrt((x * x).mean(-1, True) + 1e-6) * w,
    "swapped eps": lambda x, w, b: x * torch.rsqrt(1e-6 + x.pow(2).mean(-1, True)) * w,
    "swapped scale": lambda x, w, b: torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6) * x * w,
    "swapped weight": lambda x, w, b: w * (x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6)),
    "division": lambda x, w, b: x / torch.sqrt(x.pow(2).mean(-1, True) + 1e-6) * w,
    "one over root": lambda x, w, b: x * (1 / torch.sqrt(x.pow(2).mean(-1, True) + 1e-6)) * w,
    "reciprocal": lambda x, w, b: x * torch.sqrt(x.pow(2).mean(-1, True) + 1e-6).reciprocal() * w,
    "pow(-0.5)": lambda x, w, b: x * (x.pow(2).mean(-1, True) + 1e-6).pow(-0.5) * w,
    "pow(0.5)": lambda x, w, b: x / (x.pow(2).mean(-1, True) + 1e-6).pow(0.5) * w,
    "positive axis": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(2, True) + 1e-6) * w,
    "positive axes": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean([2], True) + 1e-6) * w,
    "sum over N": lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, True) / 8 + 1e-6) * w,
    "sum times 1/N": lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, True) * 0.125 + 1e-6) * w,
    "norm squared": lambda x, w, b: x * torch.rsqrt(x.norm(dim=-1, keepdim=True) ** 2 / 8 + 1e-6) * w,
    "vector_norm": lambda x, w, b: (
        x * torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / 8 + 1e-6) * w
    ),
    "einsum": lambda x, w, b: x * torch.rsqrt(torch.einsum("bsd,bsd->bs", x, x)[..., None] / 8 + 1e-6) * w,
    "einsum with ellipsis": lambda x, w, b: (
        x * torch.rsqrt(torch.einsum("...d,...d->...", x, x).unsqueeze(-1) / 8 + 1e-6) * w
    ),
    "vecdot": lambda x, w, b: x * torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) / 8 + 1e-6) * w,
    "unsqueeze": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6).unsqueeze(-1) * w,
    "None": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1)[:, :, None] + 1e-6) * w,
    "view": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1).view(2, 5, 1) + 1e-6) * w,
    "expand": lambda x, w, b: x / (x.pow(2).mean(-1, True) + 1e-6).sqrt().expand_as(x) * w,
    "weight before source": lambda x, w, b: (w * x) * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6),
    "weight before root": lambda x, w, b: x * (w * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6)),
    "weight over root": lambda x, w, b: x * (w / torch.sqrt(x.pow(2).mean(-1, True) + 1e-6)),
    "weighted source over root": lambda x, w, b: x * w / torch.sqrt(x.pow(2).mean(-1, True) + 1e-6),
    "root of N": lambda x, w, b: x * (8**0.5 / torch.sqrt(x.pow(2).sum(-1, True) + 8e-6)) * w,
    "root of N last": lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, True) + 8e-6) * 8**0.5 * w,
    "native": lambda x, w, b: F.rms_norm(x, (8,), w, 1e-6),
    "eps outside of sum": lambda x, w, b: x * torch.rsqrt((x.pow(2).sum(-1, True) + 8e-6) / 8) * w,
}

LAYER_SPELLINGS: dict[str, Norm] = {
    "native": lambda x, w, b: F.layer_norm(x, (8,), w, b, 1e-5),
    "var": biased_var,
    "var_mean": var_and_mean,
    "std": lambda x, w, b: (
        (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) ** 2 + 1e-5).sqrt() * w + b
    ),
    "squares": lambda x, w, b: (
        (x - x.mean(2, True)) * torch.rsqrt((x - x.mean(-1, True)).square().mean(2, True) + 1e-5) * w + b
    ),
    "sums": lambda x, w, b: (
        (x - x.sum(-1, True) / 8)
        * torch.rsqrt((x - x.sum(-1, True) * 0.125).square().sum(2, True) / 8 + 1e-5) * w + b
    ),
    "addcmul": lambda x, w, b: torch.addcmul(
        b, (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5), w
    ),
    "without keepdim": lambda x, w, b: (
        (x - x.mean(-1)[..., None]) / (x.var(-1, unbiased=False) + 1e-5).sqrt().unsqueeze(2) * w + b
    ),
    **late_means.MOMENTS,
    **late_means.OFFSETS,
}  # fmt: skip


def cosine(x, w, b):
    return F.normalize(x, dim=-1)


def divided_by_length(x, w, b):
    return x / x.norm(p=2, dim=-1, keepdim=True)


def linear_attention(x, w, b):
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)


def clamped_length(x, w, b):
    return x * (8**0.5 / x.norm(2, dim=-1, keepdim=True).clamp_min(1e-3))


def length_plus_eps(x, w, b):
    return x / (x.pow(2).sum(-1, True).sqrt() + 1e-6)


def clamped_square(x, w, b):
    return x * x.square().mean(-1, True).clamp(min=1e-6).rsqrt() * w


def unbiased(x, w, b):
    return w * ((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)) + b


def attention_scaled(x, w, b):
    return x * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6) * 0.25


def grouped(x, w, b):
    h = x.float().view(2, 5, 2, 4)
    h = (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)).view(2, 5, 8)
    return w * h.to(x.dtype)


def gated(x, w, b):
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
    return (w * h.to(x.dtype) * F.silu(x.flip(0).float())).to(x.dtype)


def modulated(x, w, b):
    scale, shift = x.mean(1, keepdim=True).chunk(2, -1)
    return F.layer_norm(x, (8,)) * (1 + scale.repeat(1, 1, 2)) + shift.repeat(1, 1, 2)


def rounded_factor(x, w, b):
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype)


def first_axis(x, w, b):
    mean = x.mean(1, keepdim=True)
    return (
        w[:5, None] * ((x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)) + b[:5, None]
    )


def per_head(x, w, b):
    return F.layer_norm(x.view(2, 5, 2, 4), (4,)) * w.view(2, 4) + b.view(2, 4)


def groups(x, w, b):
    return F.group_norm(x.transpose(1, 2), 4, w, b, 1e-5)


def one_group(x, w, b):
    return F.group_norm(x.transpose(1, 2), 1, w, b, 1e-5)


def channel_groups(x, w, b):
    return F.group_norm(x.transpose(1, 2), 8, w, b, 1e-5)


def instance(x, w, b):
    return F.instance_norm(x.transpose(1, 2), None, None, w, b, eps=1e-5)


def returned_factor(x, w, b):
    """The norm's factor multiplies what a linear made of the norm's input."""
    return F.linear(x, w[None]) * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype)


FORMS: dict[str, tuple[Norm, dict[str, object]]] = {
    "cosine": (cosine, {"kind": "l2_norm", "eps": 1e-12, "eps_mode": "clamp", "divisor": 1}),
    "divided by length": (divided_by_length, {"kind": "l2_norm", "eps": 0.0, "eps_mode": "inside"}),
    "linear attention": (linear_attention, {"kind": "l2_norm", "eps": 1e-6, "eps_mode": "inside"}),
    "clamped length": (clamped_length, {"kind": "rms_norm", "eps": 1e-3 / 8**0.5, "eps_mode": "clamp"}),
    "length plus eps": (length_plus_eps, {"kind": "l2_norm", "eps": 1e-6, "eps_mode": "outside"}),
    "clamped square": (clamped_square, {"kind": "rms_norm", "eps": 1e-3, "eps_mode": "clamp"}),
    "unbiased": (unbiased, {"kind": "layer_norm", "divisor": 7, "eps_mode": "outside"}),
    "attention scaled": (attention_scaled, {"kind": "rms_norm", "post_factor": 0.25}),
    "grouped": (grouped, {"kind": "rms_norm", "groups": 2, "has_scale": True, "dims": [-1]}),
    "gated": (gated, {"kind": "rms_norm", "has_scale": True}),
    "modulated": (modulated, {"kind": "layer_norm", "has_scale": False}),
    "rounded factor": (rounded_factor, {"kind": "rms_norm"}),
    "first axis": (first_axis, {"kind": "layer_norm", "dims": [-2], "has_scale": True, "has_shift": True}),
    "per head": (per_head, {"kind": "layer_norm", "affine_dims": [-2, -1], "has_shift": True}),
    "groups": (groups, {"kind": "group_norm", "groups": 4, "dims": [-2, -1], "affine_dims": [-2]}),
    "one group": (one_group, {"kind": "group_norm", "groups": 1}),
    "channel groups": (channel_groups, {"kind": "instance_norm", "groups": 1, "dims": [-1]}),
    "instance": (instance, {"kind": "instance_norm", "dims": [-1]}),
    "returned factor": (returned_factor, {"kind": "rms_norm", "returns": "factor"}),
    **late_means.FORMS,
}


def pocket_tts(x, w, b):
    """Unbiased variance, and no mean is removed."""
    return x * (w * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5))


def cumulative(x, w, b):
    """Statistics of all positions up to this one."""
    counts = torch.arange(1, 6, dtype=x.dtype)[:, None] * 8
    mean = x.sum(-1, keepdim=True).cumsum(1) / counts
    square = (x - mean).pow(2).sum(-1, keepdim=True).cumsum(1) / counts
    return (x - mean) * torch.rsqrt(square + 1e-5) * w


def mixed_precision(x, w, b):
    """In half precision the mean is rounded before it is removed; in float32 this is a LayerNorm."""
    h = x.float()
    return (h - x.mean(-1, True)) * torch.rsqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5)


NEAR_MISSES: dict[str, Norm] = {
    "statistics of another tensor": lambda x, w, b: x * torch.rsqrt((x + 1).pow(2).mean(-1, True) + 1e-6),
    "mean of another tensor": lambda x, w, b: (
        (x - (2 * x).mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
    "variance without centring": lambda x, w, b: (
        x * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
    "centring without variance": lambda x, w, b: (
        (x - x.mean(-1, True)) * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6)
    ),
    "means over different axes": lambda x, w, b: (
        (x - x.mean(1, True)) * torch.rsqrt((x - x.mean(1, True)).pow(2).mean(-1, True) + 1e-6)
    ),
    "cube": lambda x, w, b: x * torch.rsqrt(x.pow(3).mean(-1, True) + 1e-6),
    "half of the channels": lambda x, w, b: x * torch.rsqrt(x[..., :4].pow(2).mean(-1, True) + 1e-6),
    "scale only": lambda x, w, b: x * w + b,
    "weight inside": lambda x, w, b: x * torch.rsqrt((x * w).pow(2).mean(-1, True) + 1e-6),
    "whole tensor": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean() + 1e-6),
    "alpha": lambda x, w, b: (
        torch.sub(x, x.mean(-1, True), alpha=2) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
    "pocket_tts": pocket_tts,
    "cumulative": cumulative,
    "statistics pooling": lambda x, w, b: torch.cat([x.mean(1), x.std(1)], -1),
    "eps inside and outside": lambda x, w, b: x / ((x.pow(2).mean(-1, True) + 1e-6).sqrt() + 1e-6),
    "magnitude of another": lambda x, w, b: (
        x * x[:1].pow(2).mean(-1, True).sqrt() / (b * x).pow(2).mean(-1, True).sqrt()
    ),
    "mean over tokens": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6).mean(1)[:, None, None],
    "top-k gate": lambda x, w, b: torch.relu(
        x - (x.mean(-1, True) + 2 * x.std(-1, correction=0, keepdim=True))
    ),
    "standard score of the root": lambda x, w, b: x * torch.sqrt(x.pow(2).mean(-1, True) + 1e-6),
    "negative factor": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1, True) * -1.0 + 100.0),
    "another einsum": lambda x, w, b: x * torch.rsqrt(torch.einsum("bsd,btd->bs", x, x).unsqueeze(-1) + 1e-6),
    "unsqueezed at the wrong place": lambda x, w, b: (
        x[:, :2, :2] * torch.rsqrt(x[:, :2, :2].pow(2).mean(-1) + 1e-6).unsqueeze(1)
    ),
    "mean of a third": lambda x, w, b: (
        (x - x.sum(-1, True) / 9) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
    "one-norm": lambda x, w, b: x / x.norm(p=1, dim=-1, keepdim=True),
    "weight in the denominator": lambda x, w, b: (
        (x - x.mean(-1, True)) / (w * torch.sqrt((x - x.mean(-1, True)).pow(2).mean(-1, True) + 1e-5))
    ),
    "weight behind the root": lambda x, w, b: x / (torch.sqrt(x.pow(2).mean(-1, True) + 1e-6) * w),
    "linear with a bias": lambda x, w, b: (
        F.linear(x, w[None], b[:1]) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    ),
    "factor after a square": lambda x, w, b: (
        F.linear(x * x, w[None]) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    ),
    **late_means.NEAR_MISSES,
}
