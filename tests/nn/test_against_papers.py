"""Fifty training steps beside the papers' equations in float64: outputs, gradients and buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from normfuse.nn import BatchNorm, PowerNorm, PowerNormV, ProgressiveNorm, RepBatchNorm, UnifiedNorm
from tests.nn.references import PowerReference, UnifiedReference, batch_norm, group_scaling
from tests.nn.steps import batches, close, drift, step

STEPS = 50


def arrays(layer):
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("window", "warmup", "filters", "start"),
    [
        (4, 10, False, 0),
        (4, 10, True, 990),
        ((3, 5), 0, True, 980),
        ((1, 4), 5, True, 0),
        (2, 1015, False, 990),
    ],
)
def test_unified_norm(window, warmup, filters, start, masked):
    layer = UnifiedNorm(8, window_size=window, warmup_iters=warmup, outlier_filtration=filters).double()
    drift(layer)
    forward, backward = layer.window_size
    reference = UnifiedReference(8, forward, backward, warmup, filters)
    smoothed = 0
    for number, batch in enumerate(batches(STEPS, masked, odd=(30, 41))):
        if number == forward + 1:
            reference.t = start + number
            layer.iters.fill_(start + number)
        tokens, dy, valid = batch.flat()
        y, dx = step(layer, batch)
        expected = reference.step(tokens, dy, *arrays(layer), valid)
        for found, wanted in zip((y, dx, layer.weight.grad, layer.bias.grad), expected, strict=True):
            close(found.reshape(wanted.shape), wanted)
        close(layer.running_var, reference.running)
        close(layer.ema_gz, reference.ema)
        close(layer.buffer_x2, reference.x2s)
        close(layer.buffer_gz, reference.gzs)
        assert (layer.iters.item(), layer.skip_counter.item()) == (reference.t, reference.skipped)
        smoothed += reference.t > 1000 and reference.t >= warmup
    # The branches that the parameters are there for were taken.
    assert (reference.skipped > 0) == (filters and forward > 1)
    assert (smoothed > 0) == (start > 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("warmup", [0, 20])
def test_power_norm(warmup, masked):
    layer = PowerNorm(8, alpha_bkw=0.8, warmup_iters=warmup, layer_scale=False).double()
    drift(layer)
    reference = PowerReference(8, warmup)
    for batch in batches(STEPS, masked):
        tokens, dy, valid = batch.flat()
        y, dx = step(layer, batch)
        expected = reference.step(tokens, dy, *arrays(layer), valid)
        for found, wanted in zip((y, dx, layer.weight.grad, layer.bias.grad), expected, strict=True):
            close(found.reshape(wanted.shape), wanted)
        close(layer.running_phi, reference.phi)
        close((1 - layer.alpha_bkw) * layer.ema_gz, reference.nu)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_layer_scaling_comes_first(groups, training):
    scaling = PowerNorm(8, warmup_iters=0, group_num=groups).double().train(training)
    plain = PowerNorm(8, warmup_iters=0, layer_scale=False).double().train(training)
    for batch in batches(3, masked=True):
        scaled = torch.from_numpy(group_scaling(batch.x.numpy(), groups))
        close(scaling(batch.x, batch.mask), plain(scaled, batch.mask))
    close(scaling.running_phi, plain.running_phi)


@pytest.mark.parametrize("masked", [False, True])
def test_power_norm_v_and_warm_up_are_the_same(masked):
    vanilla = PowerNormV(8).double()
    reference = PowerReference(8, warmup=10**6)
    running = np.ones(8)
    for batch in batches(STEPS, masked):
        tokens, dy, valid = batch.flat()
        y, dx = step(vanilla, batch)
        expected = reference.step(tokens, dy, *arrays(vanilla), valid)
        for found, wanted in zip((y, dx, vanilla.weight.grad, vanilla.bias.grad), expected, strict=True):
            close(found.reshape(wanted.shape), wanted)
        running = 0.9 * running + 0.1 * (tokens[valid] ** 2).mean(0)
        close(vanilla.running_phi, running)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["bn", "rep"])
def test_batch_norms(kind, masked):
    layer = (BatchNorm(8) if kind == "bn" else RepBatchNorm(8)).double()
    drift(layer)
    bn = layer if kind == "bn" else layer.bn
    alpha = 0.0 if kind == "bn" else layer.alpha.item()
    mean, var = np.zeros(8), np.ones(8)
    for batch in batches(STEPS, masked):
        tokens, dy, valid = batch.flat()
        y, dx = step(layer, batch)
        *expected, batch_mean, batch_var = batch_norm(tokens, dy, *arrays(bn), valid)
        expected[0], expected[1] = expected[0] + alpha * tokens, expected[1] + alpha * dy
        for found, wanted in zip((y, dx, bn.weight.grad, bn.bias.grad), expected, strict=True):
            close(found.reshape(wanted.shape), wanted)
        if kind == "rep":
            close(layer.alpha.grad, [(dy * tokens).sum()])
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var
        close(bn.running_mean, mean)
        close(bn.running_var, var)
    assert bn.num_batches_tracked == STEPS


@pytest.mark.parametrize("r0", [1.0, 0.7])
@pytest.mark.parametrize("warm", [0, 3])
def test_progressive_norm(warm, r0):
    layer = ProgressiveNorm(nn.LayerNorm(8), BatchNorm(8), warm=warm, step=20, r0=r0).double()
    drift(layer)
    weight, bias = arrays(layer.norm1)
    warm_left, left, shares = warm, 20, []
    for batch in batches(STEPS, masked=False):
        tokens, dy, valid = batch.flat()
        y, dx = step(layer, batch)
        share = 1.0 if warm_left > 0 else r0 * left / 20
        warm_left, left = (warm_left - 1, left) if warm_left > 0 else (0, max(left - 1, 0))
        shares.append(share)
        second, second_dx, *_ = batch_norm(tokens, (1 - share) * dy, *arrays(layer.norm2), valid)
        # LayerNorm of tokens is batch norm of channels, transposed, but for its weight.
        everywhere, ones = np.ones(8, bool), np.ones(len(tokens))
        first, first_dx, *_ = batch_norm(tokens.T, (share * dy * weight).T, ones, 0 * ones, everywhere)
        close(y.reshape(-1, 8), share * (first.T * weight + bias) + (1 - share) * second)
        close(dx.reshape(-1, 8), first_dx.T + second_dx)
        assert (layer.warm.item(), layer.iter.item()) == (warm_left, left)
    assert shares[0] == (1.0 if warm else r0)
    assert shares[-1] == 0.0
