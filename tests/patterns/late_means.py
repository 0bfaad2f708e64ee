"""LayerNorms whose variance is made of moments, and those whose mean is removed last, and what is neither."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def mean(x):
    return x.mean(-1, keepdim=True)


def moments(x):
    return mean(x * x) - mean(x) * mean(x)


def scaled(x, variance, w, b):
    return (x - mean(x)) * torch.rsqrt(variance + 1e-5) * w + b


def inverse(x):
    return torch.rsqrt((x - mean(x)).square().mean(-1, keepdim=True) + 1e-5)


def sums(x):
    return x.pow(2).sum(-1, keepdim=True), x.sum(-1, keepdim=True)


MOMENTS = {
    "moments": lambda x, w, b: scaled(x, moments(x), w, b),
    "moments, clamp_min": lambda x, w, b: scaled(x, moments(x).clamp_min(0), w, b),
    "moments, clamp": lambda x, w, b: scaled(x, moments(x).clamp(min=0.0), w, b),
    "moments, clamp of all": lambda x, w, b: (
        (x - mean(x)) / (moments(x) + 1e-5).clamp(min=0).sqrt() * w + b
    ),
    "moments, relu": lambda x, w, b: scaled(x, F.relu(moments(x)), w, b),
    "moments, abs": lambda x, w, b: scaled(x, moments(x).abs(), w, b),
    "moments, maximum": lambda x, w, b: scaled(x, torch.maximum(v := moments(x), torch.zeros_like(v)), w, b),
    "moments, **": lambda x, w, b: scaled(x, mean(x**2) - mean(x) ** 2, w, b),
    "moments, square": lambda x, w, b: scaled(x, mean(x.square()) - mean(x).square(), w, b),
    "moments, addcmul": lambda x, w, b: (
        scaled(x, torch.addcmul(mean(x * x), m := mean(x), m, value=-1), w, b)
    ),
    "moments, alpha": lambda x, w, b: scaled(x, torch.add(mean(x * x), mean(x) ** 2, alpha=-1), w, b),
    "moments, minus first": lambda x, w, b: scaled(x, -(mean(x) * mean(x)) + mean(x * x), w, b),
    "moments, eps first": lambda x, w, b: (
        (x - mean(x)) * torch.rsqrt((mean(x * x) + 1e-5) - mean(x) ** 2) * w + b
    ),
    "moments, sums over N": lambda x, w, b: (
        scaled(x, sums(x)[0] / 8 - (sums(x)[1] / 8) ** 2, w, b)
    ),
    "moments, difference over N": lambda x, w, b: scaled(x, (sums(x)[0] - sums(x)[1] ** 2 / 8) / 8, w, b),
    "moments, sum times mean": lambda x, w, b: scaled(x, (sums(x)[0] - sums(x)[1] * mean(x)) / 8, w, b),
    "moments, over N squared": lambda x, w, b: scaled(x, (8 * sums(x)[0] - sums(x)[1] ** 2) / 64, w, b),
    "moments, N times the mean": lambda x, w, b: scaled(x, (sums(x)[0] - 8 * mean(x) ** 2) / 8, w, b),
    "moments, length": lambda x, w, b: scaled(x, x.norm(dim=-1, keepdim=True) ** 2 / 8 - mean(x) ** 2, w, b),
    "moments, without keepdim": lambda x, w, b: (
        (x - x.mean(-1)[..., None]) * torch.rsqrt((x * x).mean(-1) - x.mean(-1) ** 2 + 1e-5)[..., None]
        * w + b
    ),
    "Bessel undone": lambda x, w, b: scaled(x, x.var(-1, keepdim=True) * (7 / 8), w, b),
    "std_mean": lambda x, w, b: scaled(x, torch.std_mean(x, -1, correction=0, keepdim=True)[0] ** 2, w, b),
    "linalg.norm": lambda x, w, b: (
        scaled(x, torch.linalg.norm(x - mean(x), dim=-1, keepdim=True) ** 2 / 8, w, b)
    ),
    "mean added": lambda x, w, b: (
        torch.add(x, mean(x), alpha=-1) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + 1e-5) * w + b
    ),
    "one operand of einsum": lambda x, w, b: (
        scaled(x, torch.einsum("bsd->bs", x * x)[..., None] / 8 - mean(x) ** 2, w, b)
    ),
    "minus mean added": lambda x, w, b: (x + -mean(x)) * inverse(x) * w + b,
}  # fmt: skip


def with_factor(function):
    """A spelling with the root and the weight multiplied first."""
    return lambda x, w, b: function(x, mean(x), inverse(x) * w, b)


OFFSETS = {
    "x*s + (b - m*s)": with_factor(lambda x, m, s, b: x * s + (b - m * s)),
    "x*s - m*s + b": with_factor(lambda x, m, s, b: x * s - m * s + b),
    "x*s + b - m*s": with_factor(lambda x, m, s, b: x * s + b - m * s),
    "(b - m*s) + x*s": with_factor(lambda x, m, s, b: (b - m * s) + x * s),
    "-s*m + b": with_factor(lambda x, m, s, b: x * s + (-s * m + b)),
    "(-m)*s + b": with_factor(lambda x, m, s, b: x * s + ((-m) * s + b)),
    "addcmul(b - m*s, x, s)": with_factor(lambda x, m, s, b: torch.addcmul(b - m * s, x, s)),
    "addcmul twice": with_factor(
        lambda x, m, s, b: torch.addcmul(torch.addcmul(b, m, s, value=-1), x, s)
    ),
    "addcmul(b, x - m, s)": with_factor(lambda x, m, s, b: torch.addcmul(b, x - m, s)),
    "addcmul(b, (x - m)*w, r)": lambda x, w, b: torch.addcmul(b, (x - mean(x)) * w, inverse(x)),
    "addcdiv(b, (x - m)*w, root)": lambda x, w, b: (
        torch.addcdiv(b, (x - mean(x)) * w, (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
    ),
    "addcmul of the mean": lambda x, w, b: (
        torch.addcmul(x * inverse(x), mean(x), inverse(x), value=-1) * w + b
    ),
    "addcmul, then the weight": lambda x, w, b: (
        torch.addcmul(b, torch.addcmul(-mean(x) * inverse(x), x, inverse(x)), w)
    ),
    "(x*r - m*r)*w + b": lambda x, w, b: (x * inverse(x) - mean(x) * inverse(x)) * w + b,
    "(x*r + (-m*r))*w + b": lambda x, w, b: (x * inverse(x) + (-mean(x) * inverse(x))) * w + b,
    "x*r*w + (b - m*r*w)": lambda x, w, b: x * inverse(x) * w + (b - mean(x) * inverse(x) * w),
    "x*w*r + (b - m*r*w)": lambda x, w, b: x * w * inverse(x) + (b - mean(x) * (inverse(x) * w)),
    "x/s - m/s": lambda x, w, b: (
        (x / (s := (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()) - mean(x) / s) * w + b
    ),
    "w/s": lambda x, w, b: (
        x * (s := w / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()) + (b - mean(x) * s)
    ),
    "var_mean": lambda x, w, b: (
        x * (s := torch.rsqrt((v := torch.var_mean(x, -1, correction=0, keepdim=True))[0] + 1e-5) * w)
        + (b - v[1] * s)
    ),
    "moments and offset": lambda x, w, b: (
        x * (s := torch.rsqrt(moments(x).clamp(min=0) + 1e-5) * w) + (b - mean(x) * s)
    ),
}  # fmt: skip

FORMS = {
    "Bessel by moments": (
        lambda x, w, b: scaled(x, moments(x) * (8 / 7), w, b),
        {"kind": "layer_norm", "divisor": 7, "eps_mode": "inside", "has_shift": True},
    ),
    "sums of squares by moments": (
        lambda x, w, b: scaled(x, (sums(x)[0] - 8 * mean(x) ** 2) / 7, w, b),
        {"kind": "layer_norm", "divisor": 7, "has_scale": True},
    ),
    "eps outside, offset": (
        lambda x, w, b: (x / (s := x.std(-1, keepdim=True) + 1e-6) - mean(x) / s) * w + b,
        {"kind": "layer_norm", "divisor": 7, "eps_mode": "outside"},
    ),
    "root of moments plus eps": (
        lambda x, w, b: (x - mean(x)) / (moments(x).clamp_min(0).sqrt() + 1e-6) * w + b,
        {"kind": "layer_norm", "divisor": None, "eps": 1e-6, "eps_mode": "outside"},
    ),
    "length of what is centred": (
        lambda x, w, b: F.normalize(x - mean(x), dim=-1) * 8**0.5 * w + b,
        {"kind": "layer_norm", "divisor": None, "eps": 1e-12 / 8**0.5, "eps_mode": "clamp"},
    ),
    "several axes by moments": (
        lambda x, w, b: (
            (x - x.mean((1, 2), True))
            * torch.rsqrt((x * x).mean((1, 2), True) - x.mean((1, 2), True) ** 2 + 1e-5)
        ),
        {"kind": "layer_norm", "dims": [-2, -1]},
    ),
    "twice the difference": (
        lambda x, w, b: (x * (r := inverse(x)) - mean(x) * r) * 2.0 * w,
        {"kind": "layer_norm", "post_factor": 2.0},
    ),
}  # fmt: skip

NEAR_MISSES = {
    "square of another mean": lambda x, w, b: scaled(x, mean(x * x) - mean(2 * x) ** 2, w, b),
    "mean squared times N": lambda x, w, b: scaled(x, mean(x * x) - 8 * mean(x) ** 2, w, b),
    "sum without N": lambda x, w, b: scaled(x, (sums(x)[0] - sums(x)[1] ** 2) / 8, w, b),
    "mean squared added": lambda x, w, b: scaled(x, mean(x * x) + mean(x) ** 2, w, b),
    "mean not squared": lambda x, w, b: scaled(x, mean(x * x) - mean(x), w, b),
    "moments over another axis": lambda x, w, b: scaled(x, mean(x * x) - x.mean(1, keepdim=True) ** 2, w, b),
    "moments the other way round": lambda x, w, b: scaled(x, mean(x) ** 2 - mean(x * x), w, b),
    "moments without centring": lambda x, w, b: x * torch.rsqrt(moments(x) + 1e-5) * w + b,
    "moments below a bound": lambda x, w, b: scaled(x, moments(x).clamp(min=0, max=1), w, b),
    "addcmul of half": lambda x, w, b: (
        scaled(x, torch.addcmul(mean(x * x), mean(x), mean(x), value=-0.5), w, b)
    ),
    "addcmul with a minus": with_factor(lambda x, m, s, b: torch.addcmul(b, x - m, s, value=-1)),
    "addcdiv of twice": lambda x, w, b: (
        torch.addcdiv(b, x - mean(x), (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(), value=2)
    ),
    "addcdiv by the square": lambda x, w, b: (
        torch.addcdiv(b, x - mean(x), x.var(-1, correction=0, keepdim=True) + 1e-5)
    ),
    "einsum of a diagonal": lambda x, w, b: (
        scaled(x, torch.einsum("bdd->b", (x * x)[:, :5, :5])[:, None, None] / 8, w, b)
    ),
    "offset added": with_factor(lambda x, m, s, b: x * s + (b + m * s)),
    "offset minus the bias": with_factor(lambda x, m, s, b: x * s + (m * s - b)),
    "offset of another factor": with_factor(lambda x, m, s, b: x * s + (b - m * s * 2)),
    "offset without weight": lambda x, w, b: x * (inverse(x) * w) + (b - mean(x) * inverse(x)),
    "offset of the sum": lambda x, w, b: (x * inverse(x) - x.sum(-1, True) * inverse(x)) * w + b,
    "offset with another eps": lambda x, w, b: (
        (x * inverse(x) - mean(x) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + 1e-3)) * w + b
    ),
    "two biases": with_factor(lambda x, m, s, b: (x * s + b) + (b - m * s)),
    "factor that spares the bias": with_factor(lambda x, m, s, b: x * (2 * s) + (b - m * (2 * s))),
    "spectral norm": lambda x, w, b: (
        x / (torch.linalg.norm(x, ord=2, dim=(1, 2), keepdim=True) + 1e-6)
    ),
}  # fmt: skip
