"""CRMSNorm, SimpleRMSNorm, ScaledLayerNorm, time-dependent and adaptive LayerNorm against their equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from normfuse.nn import (
    AdaptiveLayerNorm,
    AdaptiveLayerNormZero,
    CRMSNorm,
    ScaledLayerNorm,
    SimpleRMSNorm,
    TimeDependentLayerNorm,
)
from tests.nn.training import NEAR, agree, distance, scattered


def vectors(step):
    return [torch.randn(3, 2, 7, dtype=torch.float64) * (1 + step)]


def rows(x):
    return list(x.reshape(-1, x.shape[-1]))


def standardized(row, eps):
    mean = row.sum() / len(row)
    variance = ((row - mean) ** 2).sum() / len(row)
    return (row - mean) / (variance + eps) ** 0.5


@pytest.mark.parametrize("affine", [False, True])
def test_crms_norm(affine):
    def reference(p, b, x):
        made = []
        for row in rows(x):
            whole = torch.cat([row, -row.sum()[None]])
            made.append(row / ((whole**2).sum() / len(whole) + 1e-5) ** 0.5)
        return torch.stack(made).reshape(x.shape) * (p["weight"] if affine else 1), b

    agree(scattered(CRMSNorm(7, elementwise_affine=affine)), reference, vectors)


def test_crms_norm_is_the_norm_of_the_whole_vector():
    whole = torch.randn(4, 8, dtype=torch.float64)
    whole -= whole.mean(-1, keepdim=True)
    expected = torch.nn.LayerNorm(8, elementwise_affine=False)(whole)[:, :-1]
    assert distance(CRMSNorm(7)(whole[:, :-1]), expected) <= NEAR


@pytest.mark.parametrize("form", ["inside", "outside", "clamp"])
def test_simple_rms_norm(form):
    eps = 0.1

    def reference(p, b, x):
        made = []
        for row in rows(x):
            square = (row**2).sum()
            rms = (square / len(row)) ** 0.5
            root = {
                "inside": (square / len(row) + eps) ** 0.5,
                "outside": rms + eps,
                "clamp": max(square**0.5, eps) / len(row) ** 0.5,
            }[form]
            made.append(row / root)
        return torch.stack(made).reshape(x.shape), b

    agree(SimpleRMSNorm(7, eps, eps_form=form), reference, vectors)
    agree(SimpleRMSNorm(7, eps, eps_form=form), reference, lambda step: [1e-2 * vectors(step)[0]])


@pytest.mark.parametrize("form", ["inside", "outside", "clamp"])
def test_zeros_give_zeros_and_finite_gradients(form):
    x = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    y = SimpleRMSNorm(7, eps_form=form)(x)
    y.sum().backward()
    assert bool((y == 0).all())
    assert bool(x.grad.isfinite().all())


def test_scaled_layer_norm():
    def reference(p, b, x):
        z = torch.stack([standardized(row, 1e-5) for row in rows(x)]).reshape(x.shape)
        return (z * p["weight"] + p["bias"]) / math.sqrt(6), b

    agree(scattered(ScaledLayerNorm(7, layer=6)), reference, vectors)


def interpolated(p, name, t):
    s = 1 / (1 + torch.exp(-(p[f"{name}.gate_weight"] * t + p[f"{name}.gate_bias"])))
    return s * p[f"{name}.first"] + (1 - s) * p[f"{name}.second"]


def td_layer(p, b, x, time):
    made = []
    for sample, t in zip(x, time.expand(len(x)), strict=True):
        z = torch.stack([standardized(row, 1e-5) for row in rows(sample)]).reshape(sample.shape)
        made.append(interpolated(p, "weight", t) * z + interpolated(p, "bias", t))
    return torch.stack(made), b


def td_rms(p, b, x, time):
    made = []
    for sample, t in zip(x, time.expand(len(x)), strict=True):
        z = [r / (((r**2).sum() / len(r)) ** 0.5 + 1e-8) for r in rows(sample)]
        made.append(interpolated(p, "weight", t) * torch.stack(z).reshape(sample.shape))
    return torch.stack(made), b


@pytest.mark.parametrize(("rms", "reference"), [(False, td_layer), (True, td_rms)])
@pytest.mark.parametrize("times", [3, 1])
def test_time_dependent_layer_norm(rms, reference, times):
    layer = scattered(TimeDependentLayerNorm(7, rms=rms))
    agree(layer, reference, lambda step: [*vectors(step), torch.randn(times).double()], differentiable=(0, 1))


def test_a_new_time_dependent_norm_is_a_layer_norm():
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    y = TimeDependentLayerNorm(7).double()(x, torch.randn(3).double())
    assert distance(y, torch.nn.functional.layer_norm(x, (7,))) <= NEAR


def modulation(p, c):
    silu = c / (1 + torch.exp(-c))
    return p["modulation.weight"] @ silu + p["modulation.bias"]


def ada(p, b, x, condition):
    made = []
    for sample, c in zip(x, condition, strict=True):
        shift, scale = modulation(p, c)[:7], modulation(p, c)[7:14]
        z = torch.stack([standardized(row, 1e-6) for row in rows(sample)]).reshape(sample.shape)
        made.append(z * (1 + scale) + shift)
    return torch.stack(made), b


def conditioned(step):
    return [*vectors(step), torch.randn(3, 4).double()]


def test_adaptive_layer_norm():
    agree(scattered(AdaptiveLayerNorm(7, 4)), ada, conditioned, differentiable=(0, 1))


class Block(torch.nn.Module):
    """x + gate F(y), F a number here."""

    def __init__(self, norm):
        super().__init__()
        self.modulation = norm.modulation
        self.norm = norm

    def forward(self, x, condition):
        y, gate = self.norm(x, condition)
        return x + gate * (3 * y)


def test_adaptive_layer_norm_zero():
    def reference(p, b, x, condition):
        gates = torch.stack([modulation(p, c)[14:] for c in condition])[:, None]
        return x + gates * (3 * ada(p, b, x, condition)[0]), b

    agree(scattered(Block(AdaptiveLayerNormZero(7, 4))), reference, conditioned, differentiable=(0, 1))


def test_a_new_adaptive_block_is_the_identity():
    x, condition = (t.float() for t in conditioned(0))
    assert torch.equal(Block(AdaptiveLayerNormZero(7, 4))(x, condition), x)


LAYERS = {
    "crms": (CRMSNorm(4), ()),
    "outside": (SimpleRMSNorm(4, 0.1, eps_form="outside"), ()),
    "clamp": (SimpleRMSNorm(4, 0.1, eps_form="clamp"), ()),
    "scaled": (ScaledLayerNorm(4, 3), ()),
    "time": (TimeDependentLayerNorm(4), (torch.rand(2).double(),)),
    "time rms": (TimeDependentLayerNorm(4, rms=True), (torch.rand(2).double(),)),
    "adaptive": (AdaptiveLayerNorm(4, 3), (torch.rand(2, 3).double(),)),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_gradcheck(name):
    layer, others = LAYERS[name]
    layer = scattered(layer)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    assert gradcheck(lambda x, *_: layer(x, *others), (x, *parameters))
