"""What every layer with running statistics does: gradients, evaluation, state, dtypes and refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from normfuse.errors import InputError
from normfuse.nn import BatchNorm, PowerNorm, PowerNormV, ProgressiveNorm, RepBatchNorm, UnifiedNorm
from tests.nn.steps import batches, close, drift, step
from tests.nn.zoo import MASKED, ZOO

each = pytest.mark.parametrize("name", MASKED)
#: Two roundings to bfloat16 (8 bits): of the input's square at most, and of the result.
BFLOAT16 = 2 * 2**-8


def trained(name, steps=5, masked=False):
    layer = ZOO[name][0]().double()
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
    layer = UnifiedNorm(8, window_size=3, warmup_iters=2).double()
    for batch in batches(5, False):
        step(layer, batch)
    x, weight = torch.randn(2, 4, 8).double().requires_grad_(), torch.rand(8).double().requires_grad_()
    assert not torch.autograd.gradcheck(
        lambda x, w: Once(layer)(x, None, w), (x, weight), raise_exception=False
    )


@each
def test_evaluation_is_the_affine_map_of_the_buffers(name):
    layer = trained(name).eval()
    x = next(iter(batches(1, False, seed=1))).x
    norm = layer.norm2 if name == "ProgressiveNorm" else layer
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
    close(layer(x), expected.detach())
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@each
def test_evaluation_before_training_is_defined(name):
    layer = ZOO[name][0]().double().eval()
    if isinstance(layer, ProgressiveNorm):
        layer.iter.zero_()
        layer.warm.zero_()
    x = torch.randn(2, 3, 8).double()
    alpha = 1.0 if name in ("RepBatchNorm", "ProgressiveNorm") else 0.0
    u = layer.observed(x) if isinstance(layer, PowerNorm) else x
    close(layer(x), u * (1 + 1e-5) ** -0.5 + alpha * x)


def test_checkpoints_of_the_papers_code_load():
    unified = {"weight": torch.ones(8), "bias": torch.ones(8), "running_var": torch.full((8,), 2.0)}
    unified |= {"ema_gz": torch.zeros(8), "iters": torch.tensor([7]), "buffer_x2": torch.ones(4, 8)}
    unified |= {"buffer_gz": torch.ones(4, 8), "skip_counter": torch.tensor([1])}
    UnifiedNorm(8).load_state_dict(unified)
    power = {"weight": torch.ones(8), "bias": torch.ones(8), "iters": torch.tensor([7])}
    power |= {"running_phi": torch.full((1, 8, 1, 1), 2.0), "ema_gz": torch.zeros(1, 8, 1, 1)}
    layer = PowerNorm(8)
    layer.load_state_dict(power)
    assert torch.equal(layer.running_phi, torch.full((8,), 2.0))
    inner = {f"bn.{key}": value for key, value in nn.BatchNorm1d(8).state_dict().items()}
    RepBatchNorm(8).load_state_dict(inner | {"alpha": torch.zeros(1)})


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
    shape = (2, 3, 8) if kind == "padding" else (0, 3, 8)
    x = torch.randn(shape).double().requires_grad_()
    if kind == "no tokens" and isinstance(layer, (BatchNorm, RepBatchNorm, ProgressiveNorm)):
        with pytest.raises(InputError, match="in each channel for a variance, and has 0"):
            layer(x)
        return
    y = layer(x, torch.ones(shape[:2], dtype=torch.bool))
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    if name == "UnifiedNorm":  # which counts it in as one with the running statistics
        place = layer.iters.item() % 3
        close(layer.buffer_x2[place], before.running_var)
        close(layer.buffer_gz[place], before.ema_gz)
        return
    for key, value in before.state_dict().items():
        if any(word in key for word in ("running", "ema")):
            close(layer.state_dict()[key], value)


def test_a_channel_of_zeros_gives_zeros():
    layer = UnifiedNorm(8, window_size=2, warmup_iters=0, outlier_filtration=True)
    for _ in range(5):
        x = torch.randn(3, 8)
        x[:, 2] = 0
        x.requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y[:, 2].eq(0).all()
        assert x.grad.isfinite().all()


@each
def test_torch_func_works_in_evaluation(name):
    layer = trained(name).eval()
    x = torch.randn(2, 3, 8).double()
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
    layer = trained("UnifiedNorm")
    first, second = (torch.randn(2, 3, 8).double().requires_grad_() for _ in range(2))
    a, b = layer(first), layer(second)
    b.sum().backward()
    a.sum().backward()
    assert first.grad.isfinite().all()
    layer(layer(first)).sum().backward()


def test_without_weight_and_bias():
    for layer in (UnifiedNorm(8, affine=False), PowerNorm(8, affine=False), PowerNormV(8, affine=False)):
        assert not list(layer.parameters())
        full = type(layer)(8)
        x = torch.randn(2, 3, 8)
        assert torch.equal(layer(x), full(x))
        assert torch.equal(layer.eval()(x), full.eval()(x))


def test_one_valid_token_is_normalized_by_the_stored_statistics():
    layer = BatchNorm(8).double()
    x = torch.randn(2, 8).double()
    close(layer(x, torch.tensor([False, True])), x * (1 + 1e-5) ** -0.5)
    assert torch.equal(layer.running_var, torch.ones(8).double())


def test_an_evaluation_before_the_end_of_the_schedule_warns_once():
    layer = ProgressiveNorm(nn.LayerNorm(8), BatchNorm(8), step=4).eval()
    with pytest.warns(UserWarning, match="evaluated 4 steps before its schedule ends"):
        layer(torch.randn(2, 8))
    layer(torch.randn(2, 8))


@pytest.mark.parametrize("name", ["UnifiedNorm", "PowerNorm", "PowerNorm scaled"])
def test_a_gradient_of_the_papers_gradient_is_refused_and_leaves_no_trace(name):
    layer = trained(name)
    x = torch.randn(2, 3, 8).double().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
    assert not any(b.requires_grad for b in layer.buffers())
    copy.deepcopy(layer)


@pytest.mark.parametrize("name", ["UnifiedNorm", "PowerNorm", "PowerNorm scaled"])
def test_a_gradient_penalty_is_refused_wherever_the_layer_stands(name):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh()).double().append(trained(name))
    x = torch.randn(2, 3, 8).double().requires_grad_()
    for of in (x, model[0].weight):
        (gradient,) = torch.autograd.grad(model(x).sin().sum(), of, create_graph=True)
        with pytest.raises(RuntimeError, match="leave the layer out of gradient penalties"):
            torch.autograd.grad(gradient.square().sum(), of)
