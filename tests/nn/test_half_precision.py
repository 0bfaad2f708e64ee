"""Statistics stay in float32 where a layer is made in half precision, or brought to it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normfuse
import normfuse.nn as layers
from tests.nn.training import distance
from tests.nn.zoo import MASKED, MOVING, ZOO, build

each = pytest.mark.parametrize("name", [*MASKED, *MOVING[3:]])
#: Parameters, values between two norms, and the result are rounded to 11 and to 8 bits.
ROUNDED = {torch.float16: 4 * 2**-11, torch.bfloat16: 4 * 2**-8}


def statistics(layer):
    return {k: b for k, b in layer.named_buffers() if b.is_floating_point()}


@each
def test_statistics_are_in_float32_at_least(name):
    layer = build(name)[0]
    for half in (copy.deepcopy(layer).half(), copy.deepcopy(layer).to(torch.bfloat16)):
        assert {b.dtype for b in statistics(half).values()} == {torch.float32}
        assert all(p.dtype != torch.float32 for p in half.parameters())
    assert {b.dtype for b in statistics(layer.double()).values()} == {torch.float64}
    assert {b.dtype for b in statistics(layer.half().to("meta")).values()} == {torch.float32}


def test_a_layer_that_is_made_in_half_precision():
    for name in ("UnifiedNorm", "PowerNorm", "BatchNorm", "AlphaBatchNorm", "IBN", "EvoNormB0"):
        layer = getattr(layers, name)(8, dtype=torch.float16)
        assert {b.dtype for b in statistics(layer).values()} == {torch.float32}
        assert {p.dtype for p in layer.parameters()} <= {torch.float16}


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_after_training(name, dtype):
    """Their squares, 90000 and more, are infinite in float16."""
    layer, (x, *others) = build(name)
    for _ in range(40):
        layer(300 * x, *others)
    half = copy.deepcopy(layer).to(dtype).eval()
    x = (300 * x).to(dtype)
    # UnMix-TNS moves its components at every call
    expected = copy.deepcopy(half).double()(x.double(), *others)
    assert distance(half(x, *others), expected) <= ROUNDED[dtype]


@each
def test_statistics_of_bfloat16_training_follow_the_batches(name):
    layer, (x, *others) = build(name)
    half, wide = copy.deepcopy(layer).bfloat16(), copy.deepcopy(layer).bfloat16().double()
    for step in range(60):
        given = ((1 + 0.003 * step) * x).bfloat16()
        half(given, *others).sum().backward()
        wide(given.double(), *others).sum().backward()
    for key, value in statistics(half).items():
        if "gz" not in key:  # sums of rounded gradients that cancel
            assert distance(value, statistics(wide)[key]) <= 2 * ROUNDED[torch.bfloat16] / 4, key


@pytest.mark.parametrize("name", ["AlphaBatchNorm", "UnifiedNorm", "RepBatchNorm"])
def test_half_precision_folds(name):
    layer, _ = build(name)
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4))
    if name == "AlphaBatchNorm":
        layer.alpha = 1.0
    model(torch.randn(9, 8))
    model.eval().bfloat16()
    x = torch.randn(9, 8).bfloat16()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        found, expected = fast(x), copy.deepcopy(model).double()(x.double())
    assert distance(found, expected) <= ROUNDED[torch.bfloat16]
    report = normfuse.last_report(fast)
    assert report.folded
    assert [site.action for site in report.sites] == ["folded"]


def test_the_layers_are_all_that_have_statistics():
    found = {name for name in ZOO if statistics(build(name)[0])}
    assert found == {*MASKED, *MOVING}
