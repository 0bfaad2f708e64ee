"""What every layer with running statistics does: gradients, evaluation, state, dtypes and refusals."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from normfuse.errors import InputError, NormfuseError, OptionError
from normfuse.nn import BatchNorm, PowerNorm, PowerNormV, ProgressiveNorm, RepBatchNorm, UnifiedNorm
from tests.nn.layers import LAYERS, SMOOTHING
from tests.nn.steps import batches, close, drift, step

each = pytest.mark.parametrize("name", LAYERS)
#: Two roundings to bfloat16 (8 bits): of the input's square at most, and of the result.
BFLOAT16 = 2 * 2**-8


def trained(name, steps=5, masked=False):
    layer = LAYERS[name]().double()
    drift(layer)
    for batch in batches(steps, masked):
        step(layer, batch)
    return layer


class Once(nn.Module):
    """A layer whose buffers are as at the start for each call, as a function for gradcheck."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, mask, weight):
        fresh = copy.deepcopy(self.layer)
        names = [n for n, _ in fresh.named_parameters() if n.endswith("weight")]
        return torch.func.functional_call(fresh, dict.fromkeys(names, weight), (x, mask))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        UnifiedNorm(4, window_size=1),
        PowerNorm(4),
        PowerNorm(4, layer_scale=False),
        PowerNormV(4),
        BatchNorm(4),
        RepBatchNorm(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_gradient_is_the_derivative_where_that_is_said(layer, masked):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 4).double().requires_grad_(), torch.rand(4).double().requires_grad_()
    mask = torch.tensor([[False, False, False, True], [False, True, True, True]]) if masked else None
    layer = layer.double()
    if isinstance(layer, UnifiedNorm):  # its moving average is left out with a window of one
        layer.ema_gz.fill_(3.0)
    assert torch.autograd.gradcheck(lambda x, w: Once(layer)(x, mask, w), (x, weight))


def test_the_smoothed_gradient_is_not_the_derivative():
    layer = UnifiedNorm(6, window_size=3, warmup_iters=2).double()
    for batch in batches(5, False):
        step(layer, batch)
    x, weight = torch.randn(2, 4, 6).double().requires_grad_(), torch.rand(6).double().requires_grad_()
    assert not torch.autograd.gradcheck(
        lambda x, w: Once(layer)(x, None, w), (x, weight), raise_exception=False
    )


@each
def test_evaluation_is_the_affine_map_of_the_buffers(name):
    layer = trained(name).eval()
    x = next(iter(batches(1, False, seed=1))).x
    norm = layer.norm2 if name == "progressive" else layer
    if isinstance(norm, RepBatchNorm):
        bn = norm.bn
        expected = bn.weight * (x - bn.running_mean) / (bn.running_var + 1e-5).sqrt() + bn.bias
        expected = expected + norm.alpha * x
    elif isinstance(norm, BatchNorm):
        expected = norm.weight * (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() + norm.bias
    else:
        square = norm.running_var if isinstance(norm, UnifiedNorm) else norm.running_phi
        u = norm.observed(x) if isinstance(norm, PowerNorm) else x
        expected = norm.weight * u / (square + 1e-5).sqrt() + norm.bias
    before = copy.deepcopy(layer.state_dict())
    with pytest.warns(UserWarning, match="ProgressiveNorm") if name == "progressive" else _nothing():
        found = layer(x)
    close(found, expected.detach())
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


class _nothing:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@each
def test_evaluation_before_training_is_defined(name):
    layer = LAYERS[name]().double().eval()
    if isinstance(layer, ProgressiveNorm):
        layer.iter.zero_()
        layer.warm.zero_()
    x = torch.randn(2, 3, 6).double()
    alpha = 1.0 if name in ("rep", "progressive") else 0.0
    u = layer.observed(x) if isinstance(layer, PowerNorm) else x
    close(layer(x), u * (1 + 1e-5) ** -0.5 + alpha * x)


@each
def test_state_survives_saving_and_copies_are_independent(name):
    layer = trained(name)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded, copied = LAYERS[name]().double(), copy.deepcopy(layer)
    loaded.load_state_dict(torch.load(file))
    for batch in batches(3, True, seed=2):
        outputs = [step(one, batch) for one in (layer, loaded, copied)]
        for y, dx in outputs[1:]:
            assert torch.equal(y, outputs[0][0])
            assert torch.equal(dx, outputs[0][1])
    for key, value in layer.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
        assert torch.equal(value, copied.state_dict()[key])


def test_checkpoints_of_the_papers_code_load():
    unified = {"weight": torch.ones(6), "bias": torch.ones(6), "running_var": torch.full((6,), 2.0)}
    unified |= {"ema_gz": torch.zeros(6), "iters": torch.tensor([7]), "buffer_x2": torch.ones(4, 6)}
    unified |= {"buffer_gz": torch.ones(4, 6), "skip_counter": torch.tensor([1])}
    UnifiedNorm(6).load_state_dict(unified)
    power = {"weight": torch.ones(6), "bias": torch.ones(6), "iters": torch.tensor([7])}
    power |= {"running_phi": torch.full((1, 6, 1, 1), 2.0), "ema_gz": torch.zeros(1, 6, 1, 1)}
    layer = PowerNorm(6)
    layer.load_state_dict(power)
    assert torch.equal(layer.running_phi, torch.full((6,), 2.0))
    inner = {f"bn.{key}": value for key, value in nn.BatchNorm1d(6).state_dict().items()}
    RepBatchNorm(6).load_state_dict(inner | {"alpha": torch.zeros(1)})


@each
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_keeps_its_dtype_and_float32_statistics(name, training):
    wide, half = LAYERS[name]().train(training), LAYERS[name]().train(training)
    x = torch.randn(4, 5, 6).bfloat16()
    with _quiet(half, wide), torch.autocast("cpu", dtype=torch.bfloat16):
        y = half(x.requires_grad_())
        expected = wide(x.detach().float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected.float(), rtol=BFLOAT16, atol=BFLOAT16)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert all(b.dtype in (torch.float32, torch.int64) for b in half.buffers())


class _quiet:  # noqa: N801
    """No warning of an unfinished schedule."""

    def __init__(self, *layers):
        for layer in layers:
            if isinstance(layer, ProgressiveNorm):
                layer._said = True

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@each
def test_padding_is_left_out_of_statistics_whatever_it_holds(name):
    one, other = trained(name), trained(name)
    batch = next(iter(batches(1, True, seed=3)))
    step(one, batch)
    batch.x[batch.mask] = float("nan")
    y = other(batch.x, batch.mask)
    assert y[~batch.mask].isfinite().all()
    for key, value in one.state_dict().items():
        if "gz" not in key:
            close(other.state_dict()[key], value)


@each
@pytest.mark.parametrize("kind", ["padding", "no tokens"])
def test_a_batch_without_tokens_leaves_the_statistics(name, kind):
    layer = trained(name, steps=8)
    before = copy.deepcopy(layer)
    shape = (2, 3, 6) if kind == "padding" else (0, 3, 6)
    x = torch.randn(shape).double().requires_grad_()
    if kind == "no tokens" and isinstance(layer, (BatchNorm, RepBatchNorm, ProgressiveNorm)):
        with pytest.raises(InputError, match="two tokens"):
            layer(x)
        return
    y = layer(x, torch.ones(shape[:2], dtype=torch.bool))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    if name == "unified":  # which counts it in as one with the running statistics
        place = layer.iters.item() % 3
        close(layer.buffer_x2[place], before.running_var)
        close(layer.buffer_gz[place], before.ema_gz)
        return
    for key, value in before.state_dict().items():
        if any(word in key for word in ("running", "ema")):
            close(layer.state_dict()[key], value)


@each
def test_wrong_inputs_are_named(name):
    layer = LAYERS[name]()
    for training in (True, False):
        layer.train(training)
        with _quiet(layer):
            with pytest.raises((InputError, RuntimeError), match=r"shape|normalized_shape"):
                layer(torch.randn(2, 3, 5))
            norm = layer.norm2 if name == "progressive" else layer
            with pytest.raises(InputError, match=r"shape \(\.\.\., 6\), channels last, not \(6,\)"):
                norm(torch.randn(6))
            with pytest.raises(InputError, match=r"one entry for each token, shape \(2, 3\), not \(3, 2\)"):
                norm(torch.randn(2, 3, 6), torch.zeros(3, 2, dtype=torch.bool))
            with pytest.raises(InputError, match="bool"):
                norm(torch.randn(2, 3, 6), torch.zeros(2, 3))
            with pytest.raises(InputError, match="floating-point"):
                norm(torch.ones(2, 3, 6, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnifiedNorm(6, window_size=4.5), "a whole number"),
        (lambda: UnifiedNorm(6, eps=0.0), "eps of UnifiedNorm is positive"),
        (lambda: PowerNormV(6, eps=-1.0), "eps of PowerNormV is positive"),
        (lambda: RepBatchNorm(6, eps=0.0), "eps of BatchNorm is positive"),
        (lambda: UnifiedNorm(6, window_size=0), "window_size of UnifiedNorm is a whole number of at least 1"),
        (lambda: UnifiedNorm(6, window_size=(4, 0)), "at least 1, not 0"),
        (lambda: UnifiedNorm(6, window_size=(4, 4, 4)), "one number or"),
        (lambda: UnifiedNorm(6, momentum=1.5), "between 0 and 1"),
        (lambda: UnifiedNorm(0), "num_features"),
        (lambda: PowerNorm(6, group_num=4), "4 does not divide 6"),
        (lambda: PowerNorm(6, warmup_iters=-1), "warmup_iters"),
        (lambda: BatchNorm(6, momentum=2.0), "momentum"),
        (lambda: ProgressiveNorm(nn.LayerNorm(6), BatchNorm(6), step=0), "step"),
        (lambda: ProgressiveNorm(nn.LayerNorm(6), BatchNorm(6), r0=2.0), "r0"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_one_token_has_no_variance():
    with pytest.raises(InputError, match="two tokens at least in training, not 1"):
        RepBatchNorm(6)(torch.randn(1, 6))
    layer = BatchNorm(6).double()
    x = torch.randn(2, 6).double()
    close(layer(x, torch.tensor([False, True])), x * (1 + 1e-5) ** -0.5)
    assert torch.equal(layer.running_var, torch.ones(6).double())


def test_a_channel_of_zeros_gives_zeros():
    layer = UnifiedNorm(6, window_size=2, warmup_iters=0, outlier_filtration=True)
    for _ in range(5):
        x = torch.randn(3, 6)
        x[:, 2] = 0
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y[:, 2].eq(0).all()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", SMOOTHING)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_second_run_in_the_backward_pass_is_refused(name, reentrant):
    layer = LAYERS[name]()
    x = torch.randn(2, 3, 6, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(NormfuseError, match="activation checkpointing"):
        y.sum().backward()


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in SMOOTHING])
def test_others_can_be_checkpointed_as_batch_norm_can(name):
    layer, plain = trained(name), trained(name)
    x = torch.randn(2, 3, 6).double().requires_grad_()
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    (found,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(found, expected)


@each
def test_torch_func_works_in_evaluation(name):
    layer = trained(name).eval()
    x = torch.randn(2, 3, 6).double()
    with _quiet(layer):
        layer.zero_grad()
        parameters = dict(layer.named_parameters())
        gradient = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).square().sum())
        found = gradient(parameters)
        layer(x).square().sum().backward()
        for key, parameter in parameters.items():
            if parameter.grad is not None and "norm1" not in key:
                close(found[key], parameter.grad)
        each_sample = torch.func.vmap(lambda one: layer(one))(x)
        close(each_sample, layer(x).detach())


def test_one_layer_in_two_places_and_two_passes_before_the_first_gradient():
    layer = trained("unified")
    first, second = (torch.randn(2, 3, 6).double().requires_grad_() for _ in range(2))
    a, b = layer(first), layer(second)
    b.sum().backward()
    a.sum().backward()
    assert first.grad.isfinite().all()
    layer(layer(first)).sum().backward()


def test_without_weight_and_bias():
    for layer in (UnifiedNorm(6, affine=False), PowerNorm(6, affine=False), PowerNormV(6, affine=False)):
        assert not list(layer.parameters())
        full = type(layer)(6)
        x = torch.randn(2, 3, 6)
        assert torch.equal(layer(x), full(x))
        assert torch.equal(layer.eval()(x), full.eval()(x))
