"""What the compiler makes of each layer in evaluation, and that the answers stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normfuse
import normfuse.nn as layers
from tests.nn.training import NEAR, distance
from tests.nn.zoo import mostly_slow


class Around(nn.Module):
    """A weight that writes what the layer reads, the layer, and one that reads what it wrote."""

    def __init__(self, first, layer, last):
        super().__init__()
        self.first, self.layer, self.last = first, layer, last

    def forward(self, x, *others):
        return self.last(self.layer(self.first(x), *others))


class Gated(nn.Module):
    """The block of adaLN-Zero, and a norm behind it."""

    def __init__(self):
        super().__init__()
        self.norm = layers.AdaptiveLayerNormZero(8, 4)
        self.sublayer, self.last = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x, condition):
        y, gate = self.norm(x, condition)
        return self.last(x + gate * self.sublayer(y))


def tokens(layer, width=8):
    return Around(nn.Linear(8, width), layer, nn.Linear(width, 3))


def images(layer):
    return Around(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 1))


def norm():
    return nn.LayerNorm(8)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def stack(place):
    return tokens(nn.Sequential(*[place(k) for k in range(1, 5)], norm()))


BATCH, LN, RMS = "batch_norm", "layer_norm", "rms_norm"
UNKNOWN, EVO, L2 = "unknown_norm", "evo_norm", "l2_norm"
TIME, CONDITION, MASK = torch.rand(2), torch.rand(2, 4), torch.rand(2, 1, 5, 4) > 0.5

#: Model, further inputs, norms found, and norms that are left.
OUTCOMES = {
    "CRMSNorm": (tokens(layers.CRMSNorm(7), 7), (), {"crms_norm": 1}, {"crms_norm": 1}),
    "SimpleRMSNorm": (tokens(layers.SimpleRMSNorm(8)), (), {RMS: 1}, {RMS: 1}),
    "SimpleRMSNorm outside": (tokens(layers.SimpleRMSNorm(8, eps_form="outside")), (), {RMS: 1}, {RMS: 1}),
    "SimpleRMSNorm clamp": (tokens(layers.SimpleRMSNorm(8, eps_form="clamp")), (), {RMS: 1}, {RMS: 1}),
    "ScaledLayerNorm": (tokens(layers.ScaledLayerNorm(8, 3)), (), {LN: 1}, {RMS: 1}),
    "TimeDependentLayerNorm": (tokens(layers.TimeDependentLayerNorm(8)), (TIME,), {LN: 1}, {RMS: 1}),
    "TimeDependentLayerNorm rms": (
        tokens(layers.TimeDependentLayerNorm(8, rms=True)), (TIME,), {RMS: 1}, {RMS: 1},
    ),
    "AdaptiveLayerNorm": (tokens(layers.AdaptiveLayerNorm(8, 4)), (CONDITION,), {LN: 1}, {RMS: 1}),
    "AdaptiveLayerNormZero": (
        Around(nn.Linear(8, 8), Gated(), nn.Linear(8, 3)), (CONDITION,), {LN: 2}, {RMS: 1, LN: 1},
    ),
    "WeightStandardizedConv2d": (
        Around(layers.WeightStandardizedConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), (),
        {"weight_standardization": 1, BATCH: 1}, {},
    ),
    "WeightStandardizedConv2d scaled": (
        Around(layers.WeightStandardizedConv2d(3, 8, 3, scaled=True), nn.BatchNorm2d(8), nn.ReLU()), (),
        {"weight_standardization": 1, BATCH: 1}, {},
    ),
    "EstimatedBatchNorm": (images(layers.EstimatedBatchNorm(8)), (), {BATCH: 1}, {}),
    "BatchChannelNorm": (
        images(layers.BatchChannelNorm(8, 2)), (), {BATCH: 1, "group_norm": 1}, {"group_norm": 1},
    ),
    "BatchChannelNorm estimate": (
        images(layers.BatchChannelNorm(8, 2, estimate=True)), (),
        {BATCH: 1, "group_norm": 1}, {"group_norm": 1},
    ),
    "IBN": (images(layers.IBN(8)), (), {"instance_norm": 1, BATCH: 1}, {"instance_norm": 1}),
    "EvoNormB0": (images(layers.EvoNormB0(8)), (), {EVO: 1}, {EVO: 1}),
    "EvoNormS0": (images(layers.EvoNormS0(8, 2)), (), {EVO: 1}, {EVO: 1}),
    "RegionNorm": (images(layers.RegionNorm(8)), (MASK,), {UNKNOWN: 2}, {UNKNOWN: 2}),
    "AlphaBatchNorm": (images(layers.AlphaBatchNorm(8)), (), {UNKNOWN: 1}, {UNKNOWN: 1}),
    "AlphaBatchNorm 1": (images(layers.AlphaBatchNorm(8, alpha=1.0)), (), {BATCH: 1}, {}),
    "UnMixTNS": (images(layers.UnMixTNS(8)), (), {L2: 2}, {L2: 2}),
    "PreNorm": (stack(lambda k: layers.PreNorm(norm, mlp())), (), {LN: 5}, {RMS: 5}),
    "PostNorm": (stack(lambda k: layers.PostNorm(norm, mlp())), (), {LN: 5}, {LN: 5}),
    "PeriNorm": (stack(lambda k: layers.PeriNorm(norm, mlp())), (), {LN: 9}, {LN: 4, RMS: 5}),
    "DepthScaledNorm": (stack(lambda k: layers.DepthScaledNorm(norm, mlp(), k)), (), {LN: 5}, {RMS: 5}),
    "mix_norm": (stack(lambda k: layers.mix_norm(norm, mlp(), k, 4)), (), {LN: 5}, {LN: 1, RMS: 4}),
}  # fmt: skip


def prepared(name):
    """In float64, with parameters and statistics that are neither zeros nor ones."""
    torch.manual_seed(0)
    model, others, found, after = OUTCOMES[name]
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    image = any(p.dim() == 4 for p in model.parameters())
    x = torch.randn(2, 3, 7, 6) if image else torch.randn(2, 5, 8)
    inputs = [v.double() if v.is_floating_point() else v for v in (x, *others)]
    for _ in range(3):
        model(*inputs)
    return model.eval(), inputs, found, after


#: Forms of one that is here, and stacks that take long to compile.
_SLOW = {
    "PreNorm", "PostNorm", "PeriNorm", "DepthScaledNorm", "SimpleRMSNorm outside",
    "BatchChannelNorm estimate", "WeightStandardizedConv2d scaled", "TimeDependentLayerNorm rms",
    "AdaptiveLayerNorm",
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(sorted(OUTCOMES), OUTCOMES.keys() - _SLOW))
def test_outcome(name):
    model, inputs, found, after = prepared(name)
    fast = torch.compile(copy.deepcopy(model), backend="normfuse", options={"normfuse.inner": "eager"})
    with torch.no_grad():
        for _ in range(2):  # UnMix-TNS adapts from call to call
            assert distance(fast(*inputs), model(*inputs)) <= NEAR
    report = normfuse.last_report(fast)
    assert (dict(report.found), dict(report.after)) == (found, after)


@pytest.mark.parametrize("name", ["CRMSNorm", "IBN", "WeightStandardizedConv2d"])
def test_rewritten_program(name):
    model, inputs, _, after = prepared(name)
    rewritten = normfuse.rewrite(model, tuple(inputs))
    assert distance(rewritten.program.module()(*inputs), model(*inputs)) <= NEAR
    assert dict(rewritten.report.after) == after


def test_crms_norm_is_described_as_the_paper_has_it():
    model, inputs, _, _ = prepared("CRMSNorm")
    with torch.no_grad():
        (site,) = normfuse.explain(model, *inputs).sites
    assert (site.kind, site.spec["basis"], site.spec["eps"]) == ("crms_norm", "drop_last", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inductor", "normfuse"])
def test_inductor_trains_and_evaluates(backend):
    """A network with Inductor's kernels: three steps of training in float64, and evaluation in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(
        layers.WeightStandardizedConv2d(3, 8, 3, scaled=True), layers.BatchChannelNorm(8, 2, estimate=True),
        layers.EvoNormB0(8), nn.Conv2d(8, 8, 1), layers.IBN(8), nn.ReLU(), nn.Conv2d(8, 8, 1),
        layers.EvoNormS0(8, 2), layers.AlphaBatchNorm(8), nn.Flatten(2), nn.Linear(20, 8),
        layers.CRMSNorm(8), layers.ScaledLayerNorm(8, 2),
    )  # fmt: skip
    model.double()
    twin = copy.deepcopy(model)
    fast = torch.compile(twin, backend=backend)
    x, outer = torch.randn(4, 3, 6, 7).double(), torch.randn(4, 8, 8).double()
    for _ in range(3):
        for one, call in ((model, model), (twin, fast)):
            one.zero_grad()
            (call(x) * outer).sum().backward()
        pairs = [(q.grad, p.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
        # A bias in front of a norm that removes the mean has none but rounding errors.
        largest = max(float(b.norm()) for _, b in pairs)
        assert all(float((a - b).norm()) <= NEAR * largest for a, b in pairs)
        assert all(distance(b, a) <= NEAR for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    model.eval().float(), twin.eval().float()  # oneDNN packs no convolution in float64
    with torch.no_grad():
        assert normfuse.verify(model, fast, (x.float(),)).ok
