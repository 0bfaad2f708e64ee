"""What is converted with which weights, what is kept and why, and that it can be undone."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import normfuse
from normfuse.errors import InputError, OptionError
from normfuse.nn import BatchNorm, PowerNorm, ProgressiveNorm, RepBatchNorm, UnifiedNorm
from tests.convert.models import (
    Block,
    ChannelsFirst,
    GemmaRMSNorm,
    LlamaRMSNorm,
    OddNorm,
    data,
    stack,
)


def filled(norm):
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


@pytest.mark.parametrize(
    ("to", "kind"),
    [
        ("unified_norm", UnifiedNorm),
        ("power_norm", PowerNorm),
        ("rep_batch_norm", RepBatchNorm),
        ("batch_norm", BatchNorm),
    ],
)
def test_weights_are_copied_into_layers_of_the_kind(to, kind):
    old = filled(nn.LayerNorm(8))
    model = stack(old, nn.RMSNorm(8))
    made = normfuse.convert(model, to)
    new = model[0].norm
    assert type(new) is kind
    inner = new.bn if to == "rep_batch_norm" else new
    assert torch.equal(inner.weight, old.weight)
    assert torch.equal(inner.bias, old.bias)
    assert inner.weight is not old.weight
    assert [str(entry) for entry in made.converted] == [
        f"0.norm (LayerNorm): {to}",
        f"1.norm (RMSNorm): {to}",
    ]
    assert made.kept == ()
    model(data()[0]).sum().backward()
    made.revert()
    assert model[0].norm is old


@pytest.mark.parametrize(
    ("norm", "weight", "bias"),
    [
        (lambda: filled(nn.LayerNorm(8, bias=False)), lambda n: n.weight, 0.0),
        (lambda: nn.LayerNorm(8, elementwise_affine=False), lambda n: torch.ones(8), 0.0),
        (lambda: filled(nn.RMSNorm(8)), lambda n: n.weight, 0.0),
        (lambda: LlamaRMSNorm(8), lambda n: n.weight, 0.0),
        (lambda: GemmaRMSNorm(8), lambda n: 1 + n.weight, 0.0),
    ],
    ids=["no bias", "no affine", "rms", "llama", "gemma"],
)
def test_forms_of_weights(norm, weight, bias):
    old = norm()
    model = stack(old)
    normfuse.convert(model, window_size=2, warmup_iters=7)
    new = model[0].norm
    assert (new.window_size, new.warmup_iters) == ((2, 2), 7)
    assert torch.equal(new.weight, weight(old))
    assert torch.equal(new.bias, torch.full((8,), bias))


class WithoutWeightNorm(nn.Module):
    """OLMo's."""

    def forward(self, x):
        return nn.functional.layer_norm(x, (8,))


def hooked():
    norm = nn.LayerNorm(8)
    norm.register_forward_hook(lambda *given: None)
    return norm


def parametrized():
    norm = nn.LayerNorm(8)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Identity())
    return norm


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm((6, 8)), "normalizes over 2 axes"),
        (ChannelsFirst(8), "forward of its own"),
        (OddNorm(8), "computes something else"),
        (nn.BatchNorm1d(6), "not a norm over the last axis"),
        (WithoutWeightNorm(), "has no weight, which would say how many channels"),
        (nn.GroupNorm(2, 6), "number variance_epsilon, eps|something else|not a norm|does not run"),
        (hooked(), "hooks are registered"),
        (parametrized(), "parametrized"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_what_stays_is_listed_with_its_reason(norm, reason):
    model = stack(nn.LayerNorm(8), norm)
    made = normfuse.convert(model)
    assert model[1].norm is norm
    ((kept),) = made.kept
    assert kept.name == "1.norm"
    assert re.search(reason, kept.reason), kept.reason
    assert str(made).startswith("1 norm converted to unified_norm, 1 kept\n")


def test_a_weight_of_two_norms_is_not_copied_apart():
    first, second = nn.LayerNorm(8), nn.LayerNorm(8)
    second.weight = first.weight
    made = normfuse.convert(stack(first, second, nn.LayerNorm(8)))
    assert [entry.name for entry in made.kept] == ["0.norm", "1.norm"]
    assert all("another module's" in entry.reason for entry in made.kept)


def test_one_norm_in_two_places_becomes_one_layer():
    norm = nn.LayerNorm(8)
    model = stack(norm, norm)
    normfuse.convert(model)
    assert isinstance(model[0].norm, UnifiedNorm)
    assert model[0].norm is model[1].norm


def test_only_and_also():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.extra = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(2))

        def forward(self, x):
            return self.weight * x

    mine = Mine()
    model = stack(nn.LayerNorm(8), nn.LayerNorm(8), mine)
    made = normfuse.convert(model, only=["1.*", "2.*"], also=[Mine])
    assert [entry.name for entry in made.converted] == ["1.norm", "2.norm"]
    assert [entry.reason for entry in made.kept] == ["only leaves it out"]
    assert torch.equal(model[2].norm.weight, mine.weight)


def test_progressive_conversion_starts_as_the_old_model_and_ends_as_the_new_one():
    model = stack(filled(nn.LayerNorm(8)))
    before = copy.deepcopy(model)
    normfuse.convert(model, "rep_batch_norm", progressive=True, warm=1, step=2)
    assert isinstance(model[0].norm, ProgressiveNorm)
    x = data()[0]
    assert torch.equal(model(x), before(x))  # 1 * a + 0 * b is a
    for _ in range(3):
        model(x)
    assert model[0].norm.iter == 0
    # Both take the statistics of the batch.
    assert torch.equal(model(x), x + model[0].mlp(model[0].norm.norm2(x)))


def test_flags_devices_and_dtypes_are_taken_over():
    norm = nn.LayerNorm(8, dtype=torch.bfloat16)
    norm.weight.requires_grad_(False)
    model = nn.Sequential(norm).eval()
    normfuse.convert(model)
    new = model[0]
    assert new.weight.dtype == torch.bfloat16
    assert new.running_var.dtype == torch.float32
    assert not new.training
    assert (new.weight.requires_grad, new.bias.requires_grad) == (False, True)
    assert model(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_encoder_of_pytorch_does_not_take_its_fast_path_past_the_new_layers(wrapped):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1) if wrapped else layer).eval()
    made = normfuse.convert(model, "batch_norm")
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        fast = model[0](x, src_key_padding_mask=mask)
    slow = model[0](x.requires_grad_(), src_key_padding_mask=mask)
    # Sums of 16 in float32 at values of order ten, through two norms and three products.
    torch.testing.assert_close(fast, slow.detach(), rtol=0, atol=5 * 16 * 10 * 2**-24)
    made.revert()
    inner = model[0].layers[0] if wrapped else model[0]
    assert inner.activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Linear(2, 2), {}, InputError, "no module with Norm"),
        (stack(OddNorm(8)), {}, InputError, r"0\.norm \(OddNorm\): .* computes something else"),
        (nn.LayerNorm(8), {}, InputError, "it is the model itself"),
        (print, {}, InputError, "takes an nn.Module"),
        (stack(nn.LayerNorm(8)), {"to": "unify_norm"}, OptionError, "did you mean unified_norm"),
        (stack(nn.LayerNorm(8)), {"window": 3}, OptionError, "did you mean window_size"),
        (stack(nn.LayerNorm(8)), {"dtype": torch.float}, OptionError, "comes from the norm"),
        (stack(nn.LayerNorm(8)), {"window_size": 0}, OptionError, "at least 1"),
        (stack(nn.LayerNorm(8)), {"progressive": True, "step": 0}, OptionError, "step"),
        (stack(nn.LayerNorm(8)), {"step": 100}, OptionError, "they go with progressive=True"),
        (stack(nn.LayerNorm(8)), {"only": "1.*"}, OptionError, r"write only=\['1.\*'\]"),
    ],
)
def test_what_cannot_be_done_is_said(model, options, error, message):
    before = list(model.modules()) if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=message):
        normfuse.convert(model, **options)
    assert before == (list(model.modules()) if isinstance(model, nn.Module) else [])


@pytest.mark.models
def test_norms_of_hugging_face_are_recognised():
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    norms = [llama.LlamaRMSNorm(8), filled(gemma.GemmaRMSNorm(8)), t5.T5LayerNorm(8)]
    model = stack(*norms)
    made = normfuse.convert(model)
    assert len(made.converted) == 3, str(made)
    assert torch.equal(model[1].norm.weight, 1 + norms[1].weight)


def test_the_package_and_the_function_are_told_apart():
    import normfuse.convert.swap

    assert len(normfuse.convert(nn.Sequential(Block(nn.LayerNorm(8)))).converted) == 1
