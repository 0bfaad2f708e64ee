"""Norms as people write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

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
}

NEAR_MISSES: dict[str, Norm] = {
    "statistics of another tensor": lambda x, w, b: x * torch.rsqrt((x + 1).pow(2).mean(-1, True) + 1e-6),
    "mean of another tensor": lambda x, w, b: (
        (x - (2 * x).mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
    "unbiased variance": lambda x, w, b: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6),
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
    "no mean": lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, True) + 1e-6),
    "eps outside": lambda x, w, b: x / (x.pow(2).mean(-1, True).sqrt() + 1e-6),
    "half of the channels": lambda x, w, b: x * torch.rsqrt(x[..., :4].pow(2).mean(-1, True) + 1e-6),
    "scale only": lambda x, w, b: x * w + b,
    "weight inside": lambda x, w, b: x * torch.rsqrt((x * w).pow(2).mean(-1, True) + 1e-6),
    "whole tensor": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean() + 1e-6),
    "alpha": lambda x, w, b: (
        torch.sub(x, x.mean(-1, True), alpha=2) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    ),
}
