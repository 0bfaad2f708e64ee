"""UnMix-TNS against its equations, and layers made from trained batch norms."""

from __future__ import annotations

import pytest
import torch

from normfuse.errors import InputError
from normfuse.nn import AlphaBatchNorm, BatchNorm, UnMixTNS
from tests.nn.training import NEAR, agree, distance, scattered

K, C = 3, 4


def images(step):
    return [torch.randn(5, C, 2, 3, dtype=torch.float64) + torch.randn(5, C, 1, 1).double()]


def cosine(u, v):
    return (u @ v) / ((u @ u) ** 0.5 * (v @ v) ** 0.5)


def unmix(p, b, x):
    """Sample by sample, component by component."""
    components = list(zip(b["component_mean"], b["component_var"], strict=True))
    rows, steps = [], [[torch.zeros(C).double(), torch.zeros(C).double()] for _ in components]
    for sample in x:
        pixels = sample.flatten(1)
        mean = pixels.sum(1) / pixels.shape[1]
        variance = ((pixels - mean[:, None]) ** 2).sum(1) / pixels.shape[1]
        weights = [torch.exp(cosine(mean.detach(), m) / 0.07) for m, _ in components]
        share = [w / sum(weights) for w in weights]
        means = [(1 - s) * m + s * mean for s, (m, _) in zip(share, components, strict=True)]
        variances = [(1 - s) * v + s * variance for s, (_, v) in zip(share, components, strict=True)]
        centre = sum(means) / K
        total = sum(variances) / K + sum(m * m for m in means) / K - centre * centre
        z = (sample - centre[:, None, None]) / (total + 1e-5)[:, None, None] ** 0.5
        rows.append(z * p["weight"][:, None, None] + p["bias"][:, None, None])
        for k, (m, v) in enumerate(components):
            steps[k][0] += share[k] * (mean.detach() - m) / len(x)
            steps[k][1] += share[k] * (variance.detach() - v) / len(x)
    moved = dict(b)
    for place, name in enumerate(("component_mean", "component_var")):
        moved[name] = torch.stack([c[place] + 0.1 * s[place] for c, s in zip(components, steps, strict=True)])
    return torch.stack(rows), moved


def trained(dtype=torch.float64):
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(C).to(dtype)
    for step in range(5):
        norm(images(step)[0].to(dtype))
    return norm


@pytest.mark.parametrize("training", [True, False])
def test_unmix_tns_adapts_in_training_and_in_evaluation(training):
    layer = UnMixTNS.from_batch_norm(trained(), K, torch.Generator().manual_seed(1))
    agree(scattered(layer).train(training), unmix, images, steps=20)


def test_nothing_moves_where_it_is_not_to_adapt():
    layer = UnMixTNS.from_batch_norm(trained(), K)
    layer.adapt = False
    (x,) = images(0)
    assert torch.equal(layer(x), layer(x))
    layer.adapt = True
    assert not torch.equal(layer(x), layer(x))


def test_components_spread_as_the_stored_statistics_say():
    """The mean over all components and the variance of their mixture are the stored ones.

    Over 4000 components the mean of a channel scatters by 0.7 deviations over root 4000, 0.011, and the
    variance of means, half of all, by root 2 over root 4000, 0.022 of itself: six of each are allowed.
    """
    norm = trained()
    layer = UnMixTNS.from_batch_norm(norm, 4000, torch.Generator().manual_seed(2))
    means, variances = layer.component_mean, layer.component_var
    deviation = norm.running_var.sqrt()
    assert bool(((means.mean(0) - norm.running_mean).abs() <= 6 * 0.0112 * deviation).all())
    assert distance(variances, (norm.running_var / 2).expand(4000, -1)) <= NEAR
    mixed = means.var(0, correction=0) + variances.mean(0)
    assert bool(((mixed / norm.running_var - 1).abs() <= 6 * 0.0112).all())


def test_one_component_is_the_stored_statistics():
    layer = UnMixTNS.from_batch_norm(trained(), 1)
    assert torch.equal(layer.component_mean[0], layer.running_mean)
    assert torch.equal(layer.component_var[0], layer.running_var)


def test_vectors_are_normalized_by_the_stored_statistics():
    norm = torch.nn.BatchNorm1d(C)
    norm(torch.randn(9, C))
    layer = UnMixTNS.from_batch_norm(norm, K)
    before = layer.component_mean.clone()
    x = torch.randn(5, C)
    assert torch.equal(layer(x), norm.eval()(x))
    assert torch.equal(layer.component_mean, before)


def test_a_sample_of_zeros_is_a_defined_value():
    layer = UnMixTNS.from_batch_norm(trained(torch.float32), K)
    y = layer(torch.zeros(2, C, 2, 2))
    assert bool(y.isfinite().all())
    assert bool(layer.component_mean.isfinite().all())


@pytest.mark.parametrize("make", [UnMixTNS.from_batch_norm, AlphaBatchNorm.from_batch_norm])
def test_what_is_taken_over(make):
    norm = trained().eval()
    norm.weight.data.normal_()
    layer = make(norm)
    assert layer.training is False
    assert layer.eps == norm.eps
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(layer, name), getattr(norm, name))
        assert getattr(layer, name) is not getattr(norm, name)
    with pytest.raises(InputError, match="stores no statistics"):
        make(torch.nn.BatchNorm2d(C, track_running_stats=False))
    with pytest.raises(InputError, match="averages all batches, with momentum=None"):
        make(torch.nn.BatchNorm2d(C, momentum=None))
    for other in (BatchNorm(C), torch.nn.LayerNorm(C)):  # channels last, and none at all
        with pytest.raises(InputError, match=r"takes a batch norm of torch.nn, channels on axis 1"):
            make(other)


def test_a_batch_norms_state_dict_loads_into_alpha_batch_norm():
    layer = AlphaBatchNorm(C)
    layer.load_state_dict(trained(torch.float32).state_dict())
    assert int(layer.num_batches_tracked) == 5
