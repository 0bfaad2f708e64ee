"""What users do with layers: odd memory, odd batches, frozen weights, files, inference mode."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normfuse.nn import IBN
from tests.nn.training import distance
from tests.nn.zoo import ZOO, build

each = pytest.mark.parametrize("name", sorted(ZOO))
#: Sums of 60 numbers in another order: 60 half units of 6e-8, through a gradient.
FLOAT32 = 1e-5


def leaves(result):
    return list(result) if isinstance(result, tuple) else [result]


def trained(name):
    layer, inputs = build(name)
    for _ in range(3):
        layer(*inputs)
    return layer, inputs


def run(layer, x, others):
    """Outputs and the gradient of the first input."""
    x = x.detach().requires_grad_()
    made = leaves(layer(x, *others))
    sum(y.sin().sum() for y in made).backward()
    return [*made, x.grad]


def same(found, expected):
    return all(distance(a, b) <= FLOAT32 for a, b in zip(found, expected, strict=True))


def strided(x):
    return torch.stack([x, -x], -1)[..., 0]


@each
@pytest.mark.parametrize("training", [True, False])
def test_memory_of_the_input(name, training):
    layer, (x, *others) = trained(name)
    layer.train(training)
    expected = run(copy.deepcopy(layer), x, others)
    forms = [strided(x)] + ([x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [])
    for form in forms:
        assert not form.is_contiguous()
        assert same(run(copy.deepcopy(layer), form, others), expected)


@each
def test_an_empty_batch_is_empty_or_refused_and_leaves_finite_statistics(name):
    layer, inputs = trained(name)
    for training in (True, False):
        layer.train(training)
        try:
            made = run(layer, inputs[0][:0], [v[:0] for v in inputs[1:]])
        except ValueError as error:
            assert "needs two values or more" in str(error) or "holds no values" in str(error)  # noqa: PT017
        else:
            assert all(y.shape[0] == 0 for y in made)
        assert all(v.isfinite().all() for v in layer.state_dict().values())


@each
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_one(name, training):
    layer, inputs = trained(name)
    made = run(layer.train(training), inputs[0][:1], [v[:1] for v in inputs[1:]])
    assert all(y.isfinite().all() for y in made)


@each
def test_evaluation_between_two_steps_of_training_changes_nothing(name):
    layer, (x, *others) = trained(name)
    twin = copy.deepcopy(layer)
    if name != "UnMixTNS":  # whose evaluation adapts
        twin.eval()(x, *others)
        twin.train()
    assert same(run(twin, x, others), run(layer, x, others))


@each
def test_inference_mode_and_then_training(name):
    layer, (x, *others) = trained(name)
    twin = copy.deepcopy(layer)
    with torch.inference_mode():
        found = leaves(layer(x, *others))
    expected = leaves(twin(x, *others))
    assert all(torch.equal(a, b.detach()) for a, b in zip(found, expected, strict=True))
    assert same(run(layer, x, others), run(twin, x, others))


@each
def test_frozen_parameters_and_inputs_without_gradient(name):
    layer, (x, *others) = trained(name)
    frozen, inner = copy.deepcopy(layer).requires_grad_(False), copy.deepcopy(layer)
    expected = run(layer, x, others)
    assert same(run(frozen, x, others), expected)
    if any(True for _ in inner.parameters()):
        sum(y.sin().sum() for y in leaves(inner(x, *others))).backward()
        for p, q in zip(inner.parameters(), layer.parameters(), strict=True):
            assert (p.grad is None and q.grad is None) or distance(p.grad, q.grad) <= FLOAT32


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value

    def right_inverse(self, value):
        return value / 2


@each
def test_parametrized_weights(name):
    layer, (x, *others) = trained(name)
    twin = copy.deepcopy(layer)
    for module in list(twin.modules()):
        for key, _ in list(module.named_parameters(recurse=False)):
            parametrize.register_parametrization(module, key, Doubled())
    assert same(run(twin, x, others), run(layer, x, others))
    layer.eval(), twin.eval()
    assert same(run(twin, x, others), run(layer, x, others))


@each
def test_pickles(name):
    layer, (x, *others) = trained(name)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    expected = run(layer, x, others)
    for one in copies:
        assert all(torch.equal(a, b) for a, b in zip(run(one, x, others), expected, strict=True))


@each
def test_a_state_of_another_size_is_refused(name):
    layer, _ = build(name)
    state = {k: torch.cat([v, v]) if v.dim() else v for k, v in layer.state_dict().items()}
    if any(v.dim() for v in state.values()):
        with pytest.raises(RuntimeError, match="size mismatch"):
            layer.load_state_dict(state)


def test_an_empty_batch_of_ibn_in_evaluation_is_empty():
    assert IBN(8).eval()(torch.randn(0, 8, 3, 3)).shape == (0, 8, 3, 3)


STATISTICS = (
    "UnifiedNorm", "PowerNorm", "PowerNormV", "BatchNorm", "RepBatchNorm", "EvoNormB0", "AlphaBatchNorm",
)  # fmt: skip


@pytest.mark.parametrize("value", [1e25, float("nan"), float("inf")])
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_beyond_what_float32_holds_are_no_secret(name, value):
    layer, (x, *others) = trained(name)
    with pytest.warns(UserWarning, match="became nan, infinite or too large"):
        layer(x * value, *others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        layer(x, *others)
        layer.eval()


@pytest.mark.parametrize("name", ["UnifiedNorm", "PowerNorm", "PowerNormV"])
def test_squares_that_float32_cannot_hold_make_no_nan(name):
    layer, (x, *others) = trained(name)
    with pytest.warns(UserWarning, match="became"):
        made = [layer(x * factor, *others) for factor in (1e25, 1.0, 1e25, 1.0)]
    assert all(y.isfinite().all() for y in made)
    made = run(layer, x, others)
    assert all(value.isfinite().all() for value in made)
    assert all(v.isfinite().all() for v in layer.state_dict().values())
    assert layer.eval()(x, *others).isfinite().all()


def test_statistics_are_looked_at_where_evaluation_begins():
    layer, _ = trained("BatchNorm")
    layer.running_var.fill_(float("inf"))
    with pytest.warns(UserWarning, match="BatchNorm: running_var became"):
        layer.eval()
