"""Calibration leaves the model alone, finds the statistics of the data, and says what changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import normfuse
from normfuse.errors import InputError, OptionError
from normfuse.nn import BatchNorm, PowerNorm, RepBatchNorm, UnifiedNorm
from tests.convert.models import data, stack


def same_state(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def model_of(*norms):
    torch.manual_seed(0)
    return stack(*(norms or (nn.LayerNorm(8), nn.LayerNorm(8))))


@pytest.mark.parametrize("to", ["unified_norm", "power_norm", "rep_batch_norm", "batch_norm"])
def test_statistics_are_those_of_all_tokens(to):
    model, batches = model_of(nn.LayerNorm(8)), [3 * x[..., :] + 1 for x in data()]
    batches[-1] = batches[-1][:2]  # a short last batch counts by its tokens
    found = normfuse.calibrate(model, batches, to)
    found.accept()
    layer = model[0].norm
    tokens = torch.cat([x.reshape(-1, 8) for x in batches]).double()
    assert found.tokens == len(tokens)
    if to == "power_norm":
        tokens = torch.nn.functional.rms_norm(tokens, (8,), eps=1e-5)
    square, mean = tokens.square().mean(0), tokens.mean(0)
    # Statistics are rounded to float32 once; inputs of power norm are rounded to it before.
    close = {"rtol": 4 * 2**-24, "atol": 4 * 2**-24}
    if isinstance(layer, (UnifiedNorm, PowerNorm)):
        stored = layer.running_var if to == "unified_norm" else layer.running_phi
        torch.testing.assert_close(stored.double(), square, **close)
    else:
        bn = layer.bn if isinstance(layer, RepBatchNorm) else layer
        torch.testing.assert_close(bn.running_mean.double(), mean, **close)
        torch.testing.assert_close(bn.running_var.double(), square - mean.square(), **close)


def test_the_model_is_unchanged_until_it_is_accepted():
    model = model_of()
    before, modules = copy.deepcopy(model), list(model.modules())
    model[1].eval()
    found = normfuse.calibrate(model, data())
    assert list(model.modules()) == modules
    assert same_state(model, before)
    assert [m.training for m in model] == [True, False]
    assert "the model is unchanged" in str(found)
    x = data()[0]
    with found.applied() as applied:
        approximate = applied(x)
        assert isinstance(model[0].norm, UnifiedNorm)
        assert (model[0].norm.training, model[1].norm.training) == (True, False)
    assert list(model.modules()) == modules
    assert found.accept() is model
    assert found.is_accepted
    assert not torch.equal(approximate, before(x))
    assert found.revert() is model
    assert torch.equal(model(x), before(x))


def test_the_change_is_measured_against_the_given_model():
    model, batches = model_of().eval(), data()
    calls = []

    def metric(one):
        calls.append(one)
        assert not one.training
        with torch.no_grad():
            return float(one(batches[0]).square().mean())

    found = normfuse.calibrate(model, batches, "batch_norm", metric=metric)
    with torch.no_grad():
        old = torch.cat([model(x) for x in batches])
        with found.applied():
            new = torch.cat([model(x) for x in batches])
            assert found.metric_after == float(model(batches[0]).square().mean())
    with torch.no_grad():
        assert found.metric_before == float(model(batches[0]).square().mean())
    expected = float((new.double() - old.double()).norm() / old.double().norm())
    assert math.isclose(found.output_change, expected, rel_tol=1e-9)
    assert found.largest_change == float((new.double() - old.double()).abs().max())
    assert len(calls) == 2
    assert found.output_change > 0.01
    assert "approximate: 2 norms as batch_norm, statistics from 120 tokens in 4 batches" in str(found)


def test_each_batch_is_normalized_by_itself_while_statistics_are_taken():
    """The second layer sees what training would show it."""
    model = model_of(nn.LayerNorm(8), nn.LayerNorm(8)).eval()
    (x,) = data(1)
    found = normfuse.calibrate(model, [x, 10 * x], "batch_norm")
    trained = copy.deepcopy(model)
    normfuse.convert(trained, "batch_norm", eps=1e-5)
    seen = []
    trained[1].norm.register_forward_pre_hook(lambda m, args: seen.append(args[0].reshape(-1, 8)))
    trained.train()
    trained(x), trained(10 * x)
    tokens = torch.cat(seen).detach().double()
    found.accept()
    # Both run in float32, so that the inputs of the second layer differ by some roundings of values up to 40.
    torch.testing.assert_close(
        model[1].norm.running_mean.double(), tokens.mean(0), rtol=0, atol=40 * 64 * 2**-24
    )


class Masking(nn.Module):
    """Forbids one answer, as models do with logits of minus infinity."""

    def __init__(self, above=math.inf):
        super().__init__()
        self.norm, self.above = nn.LayerNorm(8), above

    def forward(self, x):
        y = self.norm(x)
        forbidden = torch.arange(8) == 3
        return torch.where(forbidden | (y > self.above), -math.inf, y)


def test_answers_that_both_forbid_are_no_difference():
    masking, plain = Masking(), Masking()
    found = normfuse.calibrate(masking, data())
    expected = normfuse.calibrate(plain, data(), call=lambda model, x: model(x)[..., torch.arange(8) != 3])
    assert found.largest_change == expected.largest_change > 0
    assert found.output_change == pytest.approx(expected.output_change, rel=1e-12)


def test_answers_that_one_alone_forbids_are_an_infinite_difference():
    found = normfuse.calibrate(Masking(above=2.0), data())
    assert found.output_change == found.largest_change == math.inf


def test_what_was_put_in_later_is_not_lost():
    model = model_of()
    first, second = normfuse.calibrate(model, data()), normfuse.calibrate(model, data(), "batch_norm")
    first.accept()
    with pytest.raises(
        InputError, match="norm of Block is no longer the LayerNorm that it was, but UnifiedNorm"
    ):
        second.accept()
    assert isinstance(model[0].norm, UnifiedNorm)
    assert not second.is_accepted
    model[1].norm = nn.Identity()
    with pytest.raises(InputError, match="UnifiedNorm that it was, but Identity, which would be lost"):
        first.revert()
    assert isinstance(model[0].norm, UnifiedNorm)
    assert first.is_accepted


def test_one_norm_of_one_batch_is_counted_as_one():
    found = normfuse.calibrate(model_of(nn.LayerNorm(8)), data(1))
    assert str(found).startswith(
        "approximate: 1 norm as unified_norm, statistics from 30 tokens in 1 batch\n"
    )


def test_layers_of_ones_own_get_new_statistics():
    model = model_of(UnifiedNorm(8), RepBatchNorm(8))
    own = list(model.modules())
    found = normfuse.calibrate(model, data(), to=None)
    assert [entry.name for entry in found.converted] == ["0.norm", "1.norm"]
    assert torch.equal(model[0].norm.running_var, torch.ones(8))
    found.accept()
    assert not torch.equal(model[0].norm.running_var, torch.ones(8))
    assert not torch.equal(model[1].norm.bn.running_mean, torch.zeros(8))
    found.revert()
    assert list(model.modules()) == own
    only = normfuse.calibrate(model, data(), to=None, only=["1.*"])
    assert [entry.name for entry in only.converted] == ["1.norm"]
    assert [str(entry) for entry in only.kept] == ["0.norm (UnifiedNorm): only leaves it out"]
    with pytest.raises(OptionError, match="leave out also= and options"):
        normfuse.calibrate(model, data(), to=None, window_size=3)


@pytest.mark.parametrize("kind", ["tuple", "mapping", "call"])
def test_batches_of_every_form(kind):
    model = model_of()
    batches = {
        "tuple": [(x,) for x in data()],
        "mapping": [{"input": x} for x in data()],
        "call": [(x, torch.zeros(5)) for x in data()],
    }[kind]
    call = (lambda one, batch: one(batch[0])) if kind == "call" else None
    plain = normfuse.calibrate(model, data())
    assert normfuse.calibrate(model, batches, call=call).output_change == plain.output_change


def test_channels_that_never_vary_are_noted_and_stay_finite():
    batches = [x.index_fill(-1, torch.tensor([3]), 2.0) for x in data()]
    found = normfuse.calibrate(model_of(nn.LayerNorm(8)), batches, "batch_norm")
    assert found.notes == ("1 channel of 0.norm had one value on all the data",)
    assert math.isfinite(found.output_change)


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (stack(nn.LayerNorm(8)), [], "data is empty"),
        (stack(nn.LayerNorm(8)), iter([torch.zeros(2, 8)]), "goes through its data twice"),
        (stack(nn.LayerNorm(8)), 3, "a list of batches"),
        (stack(nn.LayerNorm(8)), [(torch.zeros(2, 8), 1)], "call= says how"),
        (stack(nn.LayerNorm(8)), [torch.full((2, 8), math.inf)], r"0\.norm met values .* not finite"),
        (Skips(), data(), r"unused saw no token"),
        (nn.Linear(8, 8), data(), "no module with Norm"),
        (nn.LayerNorm(8), data(), "it is the model itself"),
    ],
)
def test_what_cannot_be_calibrated_is_said(model, batches, message):
    modules = list(model.modules())
    with pytest.raises(InputError, match=message):
        normfuse.calibrate(model, batches)
    assert list(model.modules()) == modules
    assert all(m.training for m in modules)


def test_a_model_is_asked_for():
    with pytest.raises(InputError, match=r"takes an nn\.Module, not builtin_function"):
        normfuse.calibrate(print, data())


@pytest.mark.parametrize("to", ["unified_norm", None])
def test_one_pattern_in_the_place_of_a_list_is_refused(to):
    with pytest.raises(OptionError, match=r"write only=\['0\.\*'\]"):
        normfuse.calibrate(stack(nn.LayerNorm(8)), data(), to, only="0.*")


def test_nothing_to_give_new_statistics_to():
    with pytest.raises(InputError, match=r"it has no layer of normfuse\.nn with running statistics"):
        normfuse.calibrate(stack(nn.LayerNorm(8)), data(), to=None)


def test_progress_is_shown_where_it_is_asked_for(capsys):
    normfuse.calibrate(model_of(), data(2), progress=True)
    assert "[1/4] statistics, batch 1" in capsys.readouterr().err
    normfuse.calibrate(model_of(), data(2))
    assert capsys.readouterr().err == ""


def test_a_calibrated_batch_norm_folds():
    model = model_of(nn.LayerNorm(8)).eval()
    normfuse.calibrate(model, data(), "batch_norm").accept()
    assert isinstance(model[0].norm, BatchNorm)
    report = normfuse.explain(model, data()[0])
    assert not report.after, str(report)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda model: math.nan, "nan for the given model"),
        (lambda model: "0.5", "returns '0.5', a str"),
        (lambda model: None, "returns None"),
        (lambda model: torch.ones(2), r"a tensor of shape \(2,\)"),
        (lambda model: torch.ones((), dtype=torch.complex64), "complex64"),
        (lambda model: 1 / 0, "fails on the given model: ZeroDivisionError"),
        (lambda model: 1 / isinstance(model[0].norm, nn.LayerNorm), "fails on the approximate model"),
        (0.5, "is a function of the model, not float"),
    ],
)
def test_what_a_metric_must_not_return(metric, said):
    model = model_of()
    before, modules = copy.deepcopy(model), list(model.modules())
    model[1].eval()
    with pytest.raises(InputError, match=said):
        normfuse.calibrate(model, data(), metric=metric)
    assert list(model.modules()) == modules
    assert same_state(model, before)
    assert [m.training for m in model] == [True, False]


def test_a_metric_may_return_a_tensor_with_gradients_and_change_the_mode():
    def metric(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        model.train()
        return next(model.parameters()).sum().reshape(1)

    model = model_of()
    found = normfuse.calibrate(model, data(), metric=metric)
    assert found.metric_before == found.metric_after == float(next(model.parameters()).detach().sum())


class Once:
    """Gives its batches one time only, and says nothing."""

    def __init__(self, batches):
        self.left = iter(batches)

    def __iter__(self):
        return self.left


@pytest.mark.parametrize("batches", ["abc", {"input": torch.ones(2, 8)}, 3, None])
def test_data_that_is_none(batches):
    with pytest.raises(InputError, match="takes a list of batches or a DataLoader"):
        normfuse.calibrate(model_of(), batches)


def test_data_that_runs_out_is_refused():
    with pytest.raises(InputError, match="got 3 batches first and 0 then"):
        normfuse.calibrate(model_of(), Once(data()[:3]))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = UnifiedNorm(8)

    def forward(self, x, pad_mask):
        return self.norm(pad_mask=pad_mask, x=x)


def test_a_layer_may_be_called_by_names():
    x, mask = torch.randn(2, 3, 8), torch.tensor([[False, False, True], [False, True, True]])
    found = normfuse.calibrate(model := Masked(), [(x, mask)], to=None)
    assert found.tokens == 3
    found.accept()
    torch.testing.assert_close(model.norm.running_var, x[~mask].square().mean(0))


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool)])
def test_the_layer_says_what_is_wrong_with_a_mask(mask):
    with pytest.raises(InputError, match="UnifiedNorm takes a"):
        normfuse.calibrate(Masked(), [(torch.randn(2, 3, 8), mask)], to=None)
