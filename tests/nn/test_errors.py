"""Bad input raises one sentence that says what, where, and what to do; odd input has a documented value."""

from __future__ import annotations

import pytest
import torch

import normfuse.nn as layers
from normfuse.errors import InputError, OptionError
from tests.nn.zoo import MASKED, ZOO, build

COUNT = "is a whole number of at least 1, not"

MADE_WRONG = [
    (lambda: layers.CRMSNorm(0), f"CRMSNorm: normalized_shape {COUNT} 0"),
    (lambda: layers.CRMSNorm((7, 3)), rf"normalized_shape {COUNT} \(7, 3\)"),
    (lambda: layers.SimpleRMSNorm(8, eps_form="both"), "one of inside, outside, clamp, not 'both'"),
    (lambda: layers.ScaledLayerNorm(8, 0), f"ScaledLayerNorm: layer {COUNT} 0"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 1, groups=4), "one weight for each output channel"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 3, gamma=2.0), "gamma goes with scaled=True"),
    (lambda: layers.BatchChannelNorm(8, 3), "BatchChannelNorm: 3 groups do not divide 8 channels"),
    (lambda: layers.EvoNormS0(8), "32 groups do not divide 8 channels"),
    (lambda: layers.EvoNormB0(-1), f"num_features {COUNT} -1"),
    (lambda: layers.IBN(1), "leaves one of its norms without any"),
    (lambda: layers.IBN(8, ratio=1.0), "leaves one of its norms without any"),
    (lambda: layers.AdaptiveLayerNorm(8, 0), f"condition_features {COUNT} 0"),
    (lambda: layers.AlphaBatchNorm(8, alpha=1.5), "AlphaBatchNorm: alpha is a number from 0 to 1, not 1.5"),
    (lambda: layers.UnMixTNS(8, 0), f"num_components {COUNT} 0"),
    (lambda: layers.UnMixTNS(8, momentum=2.0), "momentum is a number from 0 to 1, not 2.0"),
    (lambda: layers.BatchNorm(8, momentum=None), "momentum is a number from 0 to 1, not None"),
    (lambda: layers.UnifiedNorm(8, window_size=4.5), f"window_size {COUNT} 4.5"),
    (lambda: layers.UnifiedNorm(8, window_size=(4, 0)), f"UnifiedNorm: window_size {COUNT} 0"),
    (lambda: layers.UnifiedNorm(8, window_size=(4, 4, 4)), "one number or"),
    (lambda: layers.UnifiedNorm(8, momentum=1.5), "UnifiedNorm: momentum is a number from 0 to 1"),
    (lambda: layers.PowerNorm(8, group_num=3), "PowerNorm: 3 groups do not divide 8 channels"),
    (lambda: layers.PowerNorm(8, warmup_iters=-1), "warmup_iters is a whole number of at least 0, not -1"),
    (lambda: layers.PowerNorm(8, alpha_bkw=-1), "alpha_bkw is a number from 0 to 1, not -1"),
    (lambda: layers.ProgressiveNorm(torch.nn.LayerNorm(8), layers.BatchNorm(8), step=0), f"step {COUNT} 0"),
    (lambda: layers.ProgressiveNorm(torch.nn.LayerNorm(8), layers.BatchNorm(8), r0=2.0), "r0 is a number"),
    (lambda: layers.ProgressiveNorm(8, layers.BatchNorm(8)), "ProgressiveNorm: norm1 is a module, not 8"),
    (lambda: layers.ProgressiveNorm(torch.nn.LayerNorm(8), None), "norm2 is a module, not None"),
    (lambda: layers.WeightStandardizedConv2d(4, 4, 3, scaled=True, gamma=float("inf")), "gamma is a finite"),
    (lambda: layers.RepBatchNorm(8, alpha="1"), "RepBatchNorm: alpha is a finite number, not '1'"),
    (lambda: layers.BatchNorm(2.0), f"BatchNorm: num_features {COUNT} 2.0"),
    (lambda: layers.ScaledLayerNorm(8.0, 1), f"ScaledLayerNorm: normalized_shape {COUNT} 8.0"),
    (lambda: layers.PreNorm(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)), "write lambda: LayerNorm"),
    (lambda: layers.mix_norm(torch.nn.Identity, torch.nn.Linear(8, 8), 1.5, 8), "there is no 1.5"),
]


@pytest.mark.parametrize("case", range(len(MADE_WRONG)))
def test_constructors(case):
    make, message = MADE_WRONG[case]
    with pytest.raises(OptionError, match=message):
        make()


SIZES = {
    "BatchChannelNorm": (8, 2), "EvoNormS0": (8, 2), "UnMixTNS": (8, 2), "ScaledLayerNorm": (8, 1),
    "AdaptiveLayerNorm": (8, 4), "AdaptiveLayerNormZero": (8, 4), "WeightStandardizedConv1d": (4, 4, 3),
    "WeightStandardizedConv2d": (4, 4, 3), "WeightStandardizedConv3d": (4, 4, 3),
}  # fmt: skip
OF_OTHERS = (
    "ProgressiveNorm", "TimeDependentParameter", "PreNorm", "PostNorm", "PeriNorm", "DepthScaledNorm",
)  # fmt: skip
WITH_EPS = [name for name in layers.__all__ if name not in (*OF_OTHERS, "mix_norm")]


@pytest.mark.parametrize("name", WITH_EPS)
def test_options_that_all_layers_have(name):
    """eps comes right after the sizes, as in PyTorch's norms, and is positive."""
    make, sizes = getattr(layers, name), SIZES.get(name, (8,))
    for eps in (0.0, -1.0, float("nan"), float("inf"), "1e-5"):
        with pytest.raises(OptionError, match=f"{name}: eps is a number above zero, not {eps!r}"):
            make(*sizes, eps=eps)
    if "Conv" not in name:
        assert "eps=0.25" in repr(make(*sizes, 0.25))
    layer = make(*sizes, device="meta", dtype=torch.float64)
    made = [*layer.parameters(), *layer.buffers()]
    assert all(v.device.type == "meta" and v.dtype in (torch.float64, torch.int64) for v in made)
    assert "eps=1e-0" in repr(layer)


@pytest.mark.parametrize("name", [k for k in sorted(ZOO) if k not in OF_OTHERS])
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
    with pytest.raises(InputError, match=r"shape \(N, 8, ...\), channels on axis 1, with .* axes, not \("):
        layer(torch.randn(shape), *others)


@pytest.mark.parametrize("name", [k for k in sorted(ZOO) if k not in OF_OTHERS])
def test_integers(name):
    layer, (x, *others) = build(name)
    with pytest.raises(InputError, match=r"floating-point inputs, not torch.int64; convert with x.float\(\)"):
        layer(x.long(), *others)


@pytest.mark.parametrize("name", [name for name in MASKED if name != "ProgressiveNorm"])
@pytest.mark.parametrize("training", [True, False])
def test_masks_for_padding(name, training):
    layer = build(name)[0].train(training)
    with pytest.raises(InputError, match=r"\(\.\.\., 8\), channels last, with two axes at least, not \(8,\)"):
        layer(torch.randn(8))
    with pytest.raises(InputError, match=r"one entry for each token, of shape \(2, 3\), not \(3, 2\)"):
        layer(torch.randn(2, 3, 8), torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(InputError, match=r"bool pad_mask, True at padding, not torch.float32"):
        layer(torch.randn(2, 3, 8), torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"takes a tensor as its pad_mask, not a list"):
        layer(torch.randn(2, 3, 8), [[False] * 3] * 2)


@pytest.mark.parametrize("name", [k for k in sorted(ZOO) if k not in OF_OTHERS and len(build(k)[1]) == 2])
def test_what_comes_beside_the_input_is_a_tensor(name):
    layer, (x, other) = build(name)
    with pytest.raises(InputError, match=r"takes a tensor as its \w+, not a list"):
        layer(x, other.tolist())


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
    with pytest.raises(InputError, match="two values or more in each channel of a sample"):
        layers.IBN(8)(torch.randn(2, 8, 1, 1))
    with pytest.raises(InputError, match="two values or more in each channel for a variance, and has 1"):
        layers.RepBatchNorm(8)(torch.randn(1, 8))
    with pytest.raises(InputError, match="two values or more in each channel"):
        layers.AlphaBatchNorm(8).eval()(torch.randn(1, 8))
    assert layers.AlphaBatchNorm(8, alpha=1.0).eval()(torch.randn(1, 8)).isfinite().all()


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
