"""Norms of (N, C, ...) against their equations: 50 steps of training, then evaluation."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from normfuse.nn import (
    IBN,
    AlphaBatchNorm,
    BatchChannelNorm,
    EstimatedBatchNorm,
    EvoNormB0,
    EvoNormS0,
    RegionNorm,
)
from tests.nn.training import NEAR, agree, distance, scattered

EPS = 1e-5


def images(step):
    return [torch.randn(3, 4, 2, 3, dtype=torch.float64) * (1 + 0.1 * step) + 0.3]


def moments(values):
    """Mean and variance of the population."""
    count = values.numel()
    mean = values.sum() / count
    return mean, ((values - mean) ** 2).sum() / count


def channels(x):
    """Moments of each channel over the batch."""
    pairs = [moments(x[:, c]) for c in range(x.shape[1])]
    return torch.stack([m for m, _ in pairs]), torch.stack([v for _, v in pairs])


def shaped(v):
    return v[None, :, None, None]


def normalized(x, mean, variance):
    return (x - mean) / (variance + EPS) ** 0.5


def batch_norm(p, b, prefix, x, training=True):
    """Ioffe and Szegedy's, whose stored variance is the sample's."""
    mean, variance = channels(x)
    count = x.numel() // x.shape[1]
    b = dict(b)
    if training:
        for name, seen in (("mean", mean), ("var", variance * count / (count - 1))):
            b[f"{prefix}running_{name}"] = 0.9 * b[f"{prefix}running_{name}"] + 0.1 * seen.detach()
        b[f"{prefix}num_batches_tracked"] = b[f"{prefix}num_batches_tracked"] + 1
    else:
        mean, variance = b[f"{prefix}running_mean"], b[f"{prefix}running_var"]
    z = normalized(x, shaped(mean), shaped(variance))
    return z * shaped(p[f"{prefix}weight"]) + shaped(p[f"{prefix}bias"]), b


def estimated(p, b, prefix, x, training=True):
    b = dict(b)
    if training:
        for name, seen in zip(("mean", "var"), channels(x.detach()), strict=True):
            stored = b[f"{prefix}running_{name}"]
            b[f"{prefix}running_{name}"] = stored + 0.1 * (seen - stored)
    z = normalized(x, shaped(b[f"{prefix}running_mean"]), shaped(b[f"{prefix}running_var"]))
    return z * shaped(p[f"{prefix}weight"]) + shaped(p[f"{prefix}bias"]), b


def in_groups(x, groups):
    """What has the moments of the group that each value is in: mean and variance of (N, C, H, W)."""
    size = x.shape[1] // groups
    mean, variance = torch.zeros_like(x), torch.zeros_like(x)
    for n in range(len(x)):
        for g in range(groups):
            part = slice(g * size, (g + 1) * size)
            m, v = moments(x[n, part])
            one = torch.zeros_like(x)
            one[n, part] = 1
            mean, variance = mean + m * one, variance + v * one
    return mean, variance


def bcn(inner):
    def reference(p, b, x, training=True):
        y, b = inner(p, b, "batch_norm.", x, training)
        z = normalized(y, *in_groups(y, 2))
        weight, bias = (torch.stack([v[0], v[0], v[1], v[1]]) for v in (p["weight"], p["bias"]))
        return z * shaped(weight) + shaped(bias), b

    return reference


def b0(p, b, x, training=True):
    _, variance = channels(x)
    if training:
        b = {"running_var": 0.9 * b["running_var"] + 0.1 * variance.detach()}
    else:
        variance = b["running_var"]
    _, instance = in_groups(x, 4)
    left, right = (shaped(variance) + EPS) ** 0.5, shaped(p["v"]) * x + (instance + EPS) ** 0.5
    y = x / torch.where(left > right, left, right)
    return y * shaped(p["weight"]) + shaped(p["bias"]), b


def s0(p, b, x, training=True):
    _, variance = in_groups(x, 2)
    y = x / (1 + torch.exp(-shaped(p["v"]) * x)) / (variance + EPS) ** 0.5
    return y * shaped(p["weight"]) + shaped(p["bias"]), b


def ibn(p, b, x, training=True):
    z = normalized(x[:, :1], *in_groups(x[:, :1], 1))
    first = z * shaped(p["instance_norm.weight"]) + shaped(p["instance_norm.bias"])
    second, b = batch_norm(p, b, "batch_norm.", x[:, 1:], training)
    return torch.cat([first, second], 1), b


def alpha(p, b, x, training=True):
    if training:
        return batch_norm(p, b, "", x)
    mean, variance = channels(x)
    mean = 0.7 * b["running_mean"] + 0.3 * mean
    variance = 0.7 * b["running_var"] + 0.3 * variance
    return normalized(x, shaped(mean), shaped(variance)) * shaped(p["weight"]) + shaped(p["bias"]), b


CASES = {
    "estimated": (lambda: EstimatedBatchNorm(4), lambda p, b, x, t=True: estimated(p, b, "", x, t)),
    "bcn": (lambda: BatchChannelNorm(4, 2), bcn(batch_norm)),
    "bcn estimate": (lambda: BatchChannelNorm(4, 2, estimate=True), bcn(estimated)),
    "b0": (lambda: EvoNormB0(4), b0),
    "s0": (lambda: EvoNormS0(4, 2), s0),
    "ibn": (lambda: IBN(4, ratio=0.3), ibn),
    "alpha": (lambda: AlphaBatchNorm(4, alpha=0.7), alpha),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_training_and_evaluation(name):
    make, reference = CASES[name]
    layer = scattered(make())
    p, b = agree(layer, reference, images)
    layer.eval()
    before = {k: v.clone() for k, v in layer.named_buffers()}
    (x,) = images(60)
    assert distance(layer(x), reference(p, b, x, False)[0]) <= NEAR
    assert all(torch.equal(v, before[k]) for k, v in layer.named_buffers())


#: No gradient flows through estimates, so in training their backward is no derivative of the forward.
TRUE = [(k, t) for k in sorted(CASES) for t in (True, False) if not (t and "estimate" in k)]


@pytest.mark.parametrize(("name", "training"), TRUE)
def test_gradcheck(name, training):
    layer = scattered(CASES[name][0]()).train(training)
    x = torch.randn(2, 4, 1, 2, dtype=torch.float64, requires_grad=True)
    if name == "b0":  # away from where the maximum changes sides
        x = (x.detach().sign() * (0.5 + x.detach().abs())).requires_grad_()
    assert gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_both_sides_of_the_maximum_are_met():
    layer = EvoNormB0(4).double()
    (x,) = images(0)
    right = x + (x.var((2, 3), correction=0, keepdim=True) + EPS).sqrt()
    share = (right > (x.var((0, 2, 3), correction=0) + EPS).sqrt()[None, :, None, None]).double().mean()
    assert 0.2 < float(share) < 0.9
    assert layer(x).shape == x.shape


def test_alpha_one_is_a_batch_norm_in_evaluation_and_zero_the_batch():
    (x,) = images(0)
    norm = torch.nn.BatchNorm2d(4).double()
    norm(x)
    layer = AlphaBatchNorm.from_batch_norm(norm, 1.0)
    (y,) = images(1)
    assert torch.equal(layer.eval()(y), norm.eval()(y))
    layer.alpha = 0.0
    assert distance(layer(y), torch.nn.BatchNorm2d(4).double()(y)) <= NEAR


def test_vectors_and_volumes_without_affine():
    for shape in ((6, 4), (2, 4, 3), (2, 4, 2, 2, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        layer = AlphaBatchNorm(4, alpha=0.0, affine=False).double().eval()
        axes = [0, *range(2, x.dim())]
        expected = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + EPS).sqrt()
        assert distance(layer(x), expected) <= NEAR


def test_an_estimate_may_move_before_the_backward_of_an_earlier_call():
    layer = EstimatedBatchNorm(4).double()
    y = [layer(images(step)[0]) for step in range(2)]
    sum(v.sum() for v in y).backward()
    assert bool(layer.weight.grad.isfinite().all())


def region(over_batch):
    def reference(p, b, x, mask):
        y = torch.zeros_like(x)
        batches = [range(len(x))] if over_batch else [[n] for n in range(len(x))]
        for samples in batches:
            for c in range(x.shape[1]):
                for k in (0, 1):
                    inside = [
                        (n, c, h, w)
                        for n in samples
                        for h in range(x.shape[2])
                        for w in range(x.shape[3])
                        if bool(mask[n, 0, h, w]) == bool(k)
                    ]
                    if not inside:
                        continue
                    mean, variance = moments(torch.stack([x[i] for i in inside]))
                    one = torch.zeros_like(x)
                    for i in inside:
                        one[i] = 1
                    y = y + one * (p["weight"][k, c] * normalized(x, mean, variance) + p["bias"][k, c])
        return y, b

    return reference


def masked(step):
    mask = (torch.rand(3, 1, 2, 3) > 0.5).double()
    mask[0] = step % 2  # one region of this sample is empty
    return [*images(step), mask]


@pytest.mark.parametrize("over_batch", [False, True])
def test_region_norm(over_batch):
    agree(scattered(RegionNorm(4, over_batch=over_batch)), region(over_batch), masked, steps=20)


def test_region_norm_gradcheck():
    layer = scattered(RegionNorm(2))
    mask = torch.tensor([1, 0, 0, 1, 1, 0]).reshape(1, 1, 2, 3)
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: layer(x, mask), (x, *layer.parameters()))


def test_one_region_does_not_reach_the_other_one():
    layer, mask = RegionNorm(4), torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    mask[..., 1:] = True
    x = torch.randn(1, 4, 2, 3)
    hurt = torch.where(mask, x, torch.inf).requires_grad_()
    y = layer(hurt, mask)
    assert torch.equal(y[..., 1:], layer(x, mask)[..., 1:])
    y[..., 1:].square().sum().backward()
    assert bool(hurt.grad[..., 1:].isfinite().all())


def test_without_a_mask_it_is_an_instance_norm():
    (x,) = images(0)
    y = RegionNorm(4).double()(x, torch.ones(3, 1, 2, 3))
    assert distance(y, torch.nn.functional.instance_norm(x)) <= NEAR
