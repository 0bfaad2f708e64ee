"""Norms of eight coordinates of values without a mean, whose ninth is minus their sum; and what is none."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def total(x, axis=-1):
    return x.sum(axis, keepdim=True)


def squares(x, axis=-1):
    return x.pow(2).sum(axis, keepdim=True)


def whole(x):
    return torch.cat([x, -total(x)], -1)


def root(y):
    return torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)


def published(x, w, b):
    """As in the code of Pre-RMSNorm and Pre-CRMSNorm Transformers (Jiang et al. 2023)."""
    last = x.sum(dim=-1, keepdim=True)
    square = (x.square().sum(dim=-1, keepdim=True) + last.square()) / (x.shape[-1] + 1)
    return x * torch.rsqrt(square + 1e-5) * w + b


SPELLINGS = {
    "published": published,
    "pow": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x) ** 2) / 9 + 1e-5) * w + b,
    "swapped terms": lambda x, w, b: x * ((total(x) * total(x) + squares(x)) / 9 + 1e-5).rsqrt() * w + b,
    "negated sum": lambda x, w, b: x * torch.rsqrt((squares(x) + (-total(x)) * -total(x)) / 9 + 1e-5) * w + b,
    "division by root": lambda x, w, b: x / torch.sqrt((squares(x) + total(x) ** 2) / 9 + 1e-5) * w + b,
    "one over root": lambda x, w, b: w * (x * (1 / ((squares(x) + total(x) ** 2) / 9 + 1e-5) ** 0.5)) + b,
    "divided apart": lambda x, w, b: x * torch.rsqrt(squares(x) / 9 + total(x) ** 2 / 9 + 1e-5) * w + b,
    "mean of squares": lambda x, w, b: (
        x * torch.rsqrt(x.pow(2).mean(-1, True) * 8 / 9 + total(x).square() / 9 + 1e-5) * w + b
    ),
    "two means": lambda x, w, b: (
        x * torch.rsqrt((x.pow(2).mean(-1, True) + 8 * x.mean(-1, True) ** 2) * (8 / 9) + 1e-5) * w + b
    ),
    "norm squared": lambda x, w, b: (
        x * torch.rsqrt((x.norm(2, dim=-1, keepdim=True) ** 2 + total(x) ** 2) / 9 + 1e-5) * w + b
    ),
    "einsum": lambda x, w, b: (
        x * torch.rsqrt((torch.einsum("bsd,bsd->bs", x, x)[..., None] + total(x) ** 2) / 9 + 1e-5) * w + b
    ),
    "sum by einsum": lambda x, w, b: (
        x * torch.rsqrt(((x * x).sum(-1) + torch.einsum("bsd->bs", x) ** 2)[..., None] / 9 + 1e-5) * w + b
    ),
    "addcmul": lambda x, w, b: (
        x * torch.rsqrt(torch.addcmul(squares(x), total(x), total(x)) / 9 + 1e-5) * w + b
    ),
    "eps before division": lambda x, w, b: x * ((squares(x) + total(x) ** 2 + 9e-5) / 9).rsqrt() * w + b,
    "eps between": lambda x, w, b: x * torch.rsqrt((squares(x) / 9 + 1e-5) + total(x) ** 2 / 9) * w + b,
    "root of nine": lambda x, w, b: 3 * (x * torch.rsqrt(squares(x) + total(x) ** 2 + 9e-5)) * w + b,
    "weight before root": lambda x, w, b: x * (w * torch.rsqrt((squares(x) + total(x) ** 2) / 9 + 1e-5)) + b,
    "written out": lambda x, w, b: ((y := whole(x)) * root(y))[..., :-1] * w + b,
    "written out, all axes sliced": lambda x, w, b: ((y := whole(x)) * root(y))[:, :, :8] * w + b,
    "written out, narrowed": lambda x, w, b: ((y := whole(x)) * root(y)).narrow(-1, 0, 8) * w + b,
    "written out, native": lambda x, w, b: F.rms_norm(whole(x), (9,), None, 1e-5)[..., :-1] * w + b,
    "written out for the statistic": lambda x, w, b: x * root(whole(x)) * w + b,
    "written out, sliced first": lambda x, w, b: (y := whole(x))[..., :-1] * root(y) * w + b,
    "written out, length": lambda x, w, b: (
        x / (torch.linalg.vector_norm(whole(x), dim=-1, keepdim=True).square() / 9 + 1e-5).sqrt() * w + b
    ),
    "written out, plus the sum": lambda x, w, b: x * root(torch.concat([x, 8 * x.mean(2, True)], 2)) * w + b,
}  # fmt: skip


def float32_inside(x, w, b):
    h = x.float()
    square = (h.square().sum(-1, keepdim=True) + h.sum(-1, keepdim=True).square()) / (h.shape[-1] + 1)
    return w * (h * torch.rsqrt(square + 1e-5)).type_as(x)


def float32_written_out(x, w, b):
    h = x.float()
    return w * F.rms_norm(whole(h), (9,), None, 1e-5)[..., :-1].to(x.dtype)


def another_axis(x, w, b):
    return x * torch.rsqrt((squares(x, 1) + total(x, 1) ** 2) / 6 + 1e-5)


#: Descriptions of their own; what is written out in half precision is rounded there, and another norm.
FORMS = {
    "float32 inside": (float32_inside, {"has_scale": True, "divisor": None, "eps": 1e-5}),
    "float32 written out": (float32_written_out, {"has_scale": True, "divisor": None, "eps": 1e-5}),
    "another axis": (another_axis, {"dims": [-2], "divisor": None}),
    "written out along another axis": (
        lambda x, w, b: F.normalize(torch.cat([x, -total(x, 1)], 1), dim=1)[:, :-1],
        {"dims": [-2], "divisor": 1, "eps_mode": "clamp", "eps": 1e-12},
    ),
    "written out, normalized": (
        lambda x, w, b: 3 * F.normalize(whole(x), dim=-1, eps=1e-3)[..., :-1],
        {"divisor": None, "eps_mode": "clamp", "eps": 1e-3 / 3},
    ),
    "two axes": (
        lambda x, w, b: x * torch.rsqrt((squares(x, (1, 2)) + total(x, (1, 2)) ** 2) / 41 + 1e-5),
        {"dims": [-2, -1], "divisor": None},
    ),
    "divided by what is stored": (
        lambda x, w, b: x * torch.rsqrt((squares(x) + total(x) ** 2) / 8 + 1e-5), {"divisor": 8},
    ),
    "divided by nothing": (
        lambda x, w, b: x * torch.rsqrt(squares(x) + total(x) ** 2 + 1e-5), {"divisor": 1, "eps": 1e-5},
    ),
    "eps outside": (
        lambda x, w, b: x / (torch.sqrt((squares(x) + total(x) ** 2) / 9) + 1e-5), {"eps_mode": "outside"},
    ),
    "a factor behind": (
        lambda x, w, b: x * torch.rsqrt((squares(x) + total(x) ** 2) / 9 + 1e-5) * w * 0.5,
        {"post_factor": 0.5, "divisor": None},
    ),
}  # fmt: skip

#: What looks like one, is none, and is no other norm that has a description.
NEAR_MISSES = {
    "minus": lambda x, w, b: x * torch.rsqrt((squares(x) - total(x) ** 2) / 9 + 100.0),
    "added product of minus one": lambda x, w, b: (
        x * torch.rsqrt(torch.addcmul(squares(x), total(x), total(x), value=-1) / 9 + 100.0)
    ),
    "twice the sum": lambda x, w, b: x * torch.rsqrt((squares(x) + (2 * total(x)) ** 2) / 9 + 1e-5),
    "twice the product": lambda x, w, b: x * torch.rsqrt((squares(x) + 2 * total(x) ** 2) / 9 + 1e-5),
    "one term divided": lambda x, w, b: x * torch.rsqrt(squares(x) / 9 + total(x) ** 2 + 1e-5),
    "mean of squares not weighted": lambda x, w, b: (
        x * torch.rsqrt((x.pow(2).mean(-1, True) + total(x) ** 2) / 9 + 1e-5)
    ),
    "mean squared": lambda x, w, b: x * torch.rsqrt((squares(x) + x.mean(-1, True) ** 2) / 9 + 1e-5),
    "sum over tokens": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x, 1) ** 2) / 9 + 1e-5),
    "sum of another": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x + 1) ** 2) / 9 + 1e-5),
    "sum of the weighted": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x * w) ** 2) / 9 + 1e-5),
    "sum not squared": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x).abs()) / 9 + 1e-5),
    "sum to the fourth": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x) ** 4) / 9 + 1e-5),
    "product with the negated sum": lambda x, w, b: (
        x * torch.rsqrt((squares(x) + total(x) * -total(x)) / 9 + 100.0)
    ),
    "sum of absolute values": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x.abs()) ** 2) / 9 + 1e-5),
    "added twice": lambda x, w, b: x * torch.rsqrt((squares(x) + total(x) ** 2 + total(x) ** 2) / 9 + 1e-5),
    "added and removed": lambda x, w, b: (
        x * torch.rsqrt(squares(x) + total(x) ** 2 - total(x) ** 2 / 8 + 1e-5)
    ),
    "of half of the channels": lambda x, w, b: (
        x * torch.rsqrt((squares(x[..., :4]) + total(x[..., :4]) ** 2) / 5 + 1e-5)
    ),
    "root of the sum of roots": lambda x, w, b: x / ((squares(x).sqrt() + total(x).abs()) / 9 + 1e-5),
    "values centred": lambda x, w, b: (
        (x - x.mean(-1, True)) * torch.rsqrt((squares(x) + total(x) ** 2) / 9 + 1e-5)
    ),
    "mean written out": lambda x, w, b: x * root(torch.cat([x, -x.mean(-1, True)], -1)),
    "zero written out": lambda x, w, b: x * root(torch.cat([x, 0 * total(x)], -1)),
    "written out along another axis": lambda x, w, b: (
        x * torch.cat([x, -total(x, 1)], 1).pow(2).mean(-1, True).add(1e-5).rsqrt()[:, :5]
    ),
    "two coordinates": lambda x, w, b: x * root(torch.cat([x, -total(x), total(x)], -1)),
}  # fmt: skip

#: RMSNorms of nine coordinates of which something else than the first eight is read.
OTHER_PARTS = {
    "all": lambda x, w, b: ((y := whole(x)) * root(y)) * 2.0,
    "the last": lambda x, w, b: ((y := whole(x)) * root(y))[..., 1:],
    "every second": lambda x, w, b: ((y := whole(x)) * root(y))[..., ::2],
    "other tokens": lambda x, w, b: ((y := whole(x)) * root(y))[:, :-1],
    "in front": lambda x, w, b: ((y := torch.cat([-total(x), x], -1)) * root(y))[..., :-1],
    "mean": lambda x, w, b: ((y := torch.cat([x, -x.mean(-1, True)], -1)) * root(y))[..., :-1],
    "read twice": lambda x, w, b: (z := (y := whole(x)) * root(y))[..., :-1] * z[..., -1:],
    "weight of nine": lambda x, w, b: F.rms_norm(whole(x), (9,), torch.cat([w, b[:1]]), 1e-5)[..., :-1],
}  # fmt: skip
