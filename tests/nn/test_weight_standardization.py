"""Convolutions with standardized weights against their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from normfuse.nn import WeightStandardizedConv1d, WeightStandardizedConv2d, WeightStandardizedConv3d
from tests.nn.training import NEAR, agree, distance, scattered

CONVS = {
    1: (WeightStandardizedConv1d, F.conv1d),
    2: (WeightStandardizedConv2d, F.conv2d),
    3: (WeightStandardizedConv3d, F.conv3d),
}


def standardized(p, scaled, gamma):
    rows = []
    for k, row in enumerate(p["weight"]):
        n = row.numel()
        mean = row.sum() / n
        variance = ((row - mean) ** 2).sum() / n
        if scaled:
            root = max(n * variance, torch.tensor(1e-4, dtype=torch.float64)) ** 0.5 / (p["gain"][k] * gamma)
        else:
            root = (variance + 1e-5) ** 0.5
        rows.append((row - mean) / root)
    return torch.stack(rows)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_training(rank, scaled):
    make, conv = CONVS[rank]
    gamma = 1.7 if scaled else 1.0
    layer = scattered(make(4, 4, 2, stride=2, padding=1, groups=2, scaled=scaled, gamma=gamma))

    def reference(p, b, x):
        return conv(x, standardized(p, scaled, gamma), p["bias"], 2, 1, 1, 2), b

    agree(layer, reference, lambda step: [torch.randn(2, 4, *[3] * rank, dtype=torch.float64)])


def test_the_scaled_weight_has_variance_one_over_fan_in_and_gain():
    layer = scattered(WeightStandardizedConv2d(3, 5, 3, scaled=True, gamma=math.sqrt(2)))
    weight = layer.standardized_weight().flatten(1)
    assert distance(weight.mean(1), torch.zeros(5)) <= NEAR
    assert distance(weight.var(1, correction=0) * 27, 2 * layer.gain**2) <= NEAR


def test_constant_weights_give_zeros_and_finite_gradients():
    for scaled in (False, True):
        layer = WeightStandardizedConv2d(3, 2, 3, bias=False, scaled=scaled)
        torch.nn.init.constant_(layer.weight, 0.5)
        y = layer(torch.randn(1, 3, 4, 4))
        y.square().sum().backward()
        assert bool((y == 0).all())
        assert bool(layer.weight.grad.isfinite().all())


@pytest.mark.parametrize("scaled", [False, True])
def test_gradcheck(scaled):
    layer = scattered(WeightStandardizedConv1d(2, 3, 2, scaled=scaled))
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_scaled_weights_that_are_nearly_constant():
    """Where n var(W) is less than eps, the root is that of eps."""
    layer = WeightStandardizedConv1d(2, 2, 2, bias=False, scaled=True).double()
    with torch.no_grad():
        layer.weight[0] *= 1e-3
    p = dict(layer.named_parameters())
    assert (4 * layer.weight[0].var(correction=0)).item() < 1e-4
    assert distance(layer.standardized_weight(), standardized(p, True, 1.0)) <= NEAR


def test_weights_of_a_plain_convolution_load():
    plain = torch.nn.Conv2d(3, 4, 3)
    layer = WeightStandardizedConv2d(3, 4, 3)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    assert layer(torch.randn(3, 5, 5)).shape == (4, 3, 3)


def test_padding_modes_are_those_of_the_convolution():
    layer = scattered(WeightStandardizedConv2d(2, 3, 3, padding=1, padding_mode="reflect"))
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    expected = F.conv2d(F.pad(x, [1] * 4, "reflect"), layer.standardized_weight(), layer.bias)
    assert distance(layer(x), expected) <= NEAR
