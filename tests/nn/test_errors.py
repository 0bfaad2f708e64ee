"""Bad input raises one sentence that says what, where, and what to do; odd input has a documented value."""

from __future__ import annotations

import pytest
import torch

import normfuse.nn as layers
from normfuse.errors import InputError, OptionError
from tests.nn.zoo import ZOO, build

MADE_WRONG = [
    (lambda: layers.CRMSNorm(0), "normalized_shape is a count of one or more, not 0"),
    (lambda: layers.CRMSNorm((7, 3)), r"normalized_shape is a count of one or more, not \(7, 3\)"),
    (lambda: layers.SimpleRMSNorm(8, 0.0), "eps is more than zero"),
    (lambda: layers.SimpleRMSNorm(8, eps_form="both"), "one of inside, outside, clamp, not 'both'"),
    (lambda: layers.ScaledLayerNorm(8, 0), "layer is a count of one or more, not 0"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 1, groups=4), "one weight for each output channel"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 3, eps=0.0), "eps is more than zero"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 3, gamma=2.0), "gamma goes with scaled=True"),
    (lambda: layers.BatchChannelNorm(8, 3), "3 groups do not divide 8 channels"),
    (lambda: layers.EvoNormS0(8), "32 groups do not divide 8 channels"),
    (lambda: layers.EvoNormB0(-1), "num_features is a count of one or more, not -1"),
    (lambda: layers.IBN(1), "leaves one of its norms without any"),
    (lambda: layers.IBN(8, 1.0), "leaves one of its norms without any"),
    (lambda: layers.TimeDependentLayerNorm(8, eps=0.0), "eps is more than zero, not 0.0"),
    (lambda: layers.AdaptiveLayerNorm(8, 0), "condition_features is a count of one or more, not 0"),
    (lambda: layers.AlphaBatchNorm(8, 1.5), "alpha is from 0 to 1, not 1.5"),
    (lambda: layers.UnMixTNS(8, 0), "num_components is a count of one or more, not 0"),
    (lambda: layers.UnMixTNS(8, momentum=2.0), "momentum is from 0 to 1, not 2.0"),
]


@pytest.mark.parametrize("case", range(len(MADE_WRONG)))
def test_constructors(case):
    make, message = MADE_WRONG[case]
    with pytest.raises(OptionError, match=message):
        make()


WITHOUT = ("PreNorm", "PostNorm", "PeriNorm", "DepthScaledNorm")


@pytest.mark.parametrize("name", [k for k in sorted(ZOO) if k not in WITHOUT])
def test_another_size_where_the_features_are(name):
    layer, (x, *others) = build(name)
    axis = 1 if x.dim() > 3 or "Conv" in name else -1
    with pytest.raises(InputError) as error:
        layer(torch.cat([x, x], axis), *others)
    assert type(layer).__name__ in str(error.value)
    assert str(x.shape[axis] * 2) in str(error.value)


IMAGES = ("BatchChannelNorm", "EvoNormB0", "EvoNormS0", "IBN", "RegionNorm", "EstimatedBatchNorm", "UnMixTNS")


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("shape", [(8,), (1, 8, 2, 2, 2, 2)])
def test_rank(name, shape):
    layer, (_, *others) = build(name)
    with pytest.raises(InputError, match=r"axes, \(N, C, ...\)"):
        layer(torch.randn(shape), *others)


@pytest.mark.parametrize("name", ["CRMSNorm", "RegionNorm", "AlphaBatchNorm"])
def test_integers(name):
    layer, (x, *others) = build(name)
    with pytest.raises(InputError, match=r"takes floating-point values, not torch.int64; convert them"):
        layer(x.long(), *others)


@pytest.mark.parametrize("name", ["EstimatedBatchNorm", "EvoNormB0", "AlphaBatchNorm", "BatchChannelNorm"])
def test_one_value_in_each_channel_has_no_variance(name):
    layer, _ = build(name)
    with pytest.raises(InputError, match="two values or more in each channel for a variance, and has 1"):
        layer(torch.randn(1, 8, 1, 1))
    with pytest.raises(InputError, match="and has 0"):
        layer(torch.randn(0, 8, 1, 1))


def test_one_value_in_each_group_or_channel_of_a_sample():
    for layer in (layers.EvoNormS0(8, 8), layers.BatchChannelNorm(8, 8)):
        with pytest.raises(InputError, match="two values or more in each group"):
            layer(torch.randn(2, 8, 1, 1))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        layers.IBN(8)(torch.randn(2, 8, 1, 1))
    with pytest.raises(InputError, match="two values or more in each channel"):
        layers.AlphaBatchNorm(8).eval()(torch.randn(1, 8))
    assert layers.AlphaBatchNorm(8, 1.0).eval()(torch.randn(1, 8)).isfinite().all()


def test_masks_times_and_conditions():
    region, x = layers.RegionNorm(8), torch.randn(2, 8, 3, 4)
    for shape in ((2, 1, 6, 8), (2, 3, 4), (1, 1, 3, 4), (2, 8, 3, 4)):
        with pytest.raises(InputError, match=r"takes a mask of \(2, 1, 3, 4\).*interpolate"):
            region(x, torch.ones(shape))
    with pytest.raises(InputError, match=r"a time of \(N,\) or \(1,\)"):
        layers.TimeDependentLayerNorm(8)(torch.randn(3, 5, 8), torch.rand(2))
    with pytest.raises(InputError, match=r"a condition of \(N, 4\)"):
        layers.AdaptiveLayerNorm(8, 4)(torch.randn(3, 5, 8), torch.rand(3, 5, 4))
    with pytest.raises(InputError, match="holds no values"):
        layers.UnMixTNS(8)(torch.randn(0, 8, 2, 2))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_constant_input_gives_finite_values_and_gradients(name):
    layer, (x, *others) = build(name)
    x = torch.full_like(x, 0.75).requires_grad_()
    made = layer(x, *others)
    made = made[0] if isinstance(made, tuple) else made
    made.square().sum().backward()
    assert made.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "name", ["EstimatedBatchNorm", "EvoNormB0", "AlphaBatchNorm", "BatchChannelNorm", "IBN", "UnMixTNS"]
)
def test_evaluation_of_a_new_layer_is_a_defined_value(name):
    layer, inputs = build(name)
    assert layer.eval()(*inputs).isfinite().all()
    assert (layer.running_var if hasattr(layer, "running_var") else layer.batch_norm.running_var).eq(1).all()
