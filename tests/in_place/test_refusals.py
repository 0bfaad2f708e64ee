"""Models that cannot be written to are refused in one sentence, and are as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
import normfuse.nn as layers
from tests.in_place.models import WIDTH, Stream, Text, applied, assert_same, made, tokens, vectors


def refused(model: nn.Module, match: str, **options: object) -> None:
    before = [(t, t._version) for t in (*model.parameters(), *model.buffers())]
    with pytest.raises(normfuse.InputError, match=match) as error:
        normfuse.apply(model, (vectors(),), **{"paths": "shown", "verify": "off", **options})
    assert "\n" not in str(error.value)
    assert [(t, t._version) for t in (*model.parameters(), *model.buffers())] == before


def test_compiled_models() -> None:
    refused(torch.compile(made(Stream()), backend="eager"), "compiled already")
    model = made(Stream())
    model.block.compile(backend="eager")
    refused(model, "block is compiled already")


def test_training_mode() -> None:
    refused(made(Stream()).train(), "training mode")
    model = made(Stream())
    model.block.drop.train()
    refused(model, r"block\.drop is in training mode")


def test_wrapped_models() -> None:
    refused(nn.DataParallel(made(Stream())), "wrapped in DataParallel; call normfuse.apply before")


class Packed(torch.Tensor):
    """A tensor as libraries for quantized or distributed weights make them."""


def test_tensors_that_are_no_plain_ones() -> None:
    model = made(Stream())
    model.block.up.weight = nn.Parameter(model.block.up.weight.detach().as_subclass(Packed))
    refused(model, r"block\.up\.weight is a Packed, not a plain tensor")


def test_weights_without_values() -> None:
    refused(made(Stream()).to("meta"), "meta device")


def test_what_is_no_model() -> None:
    with pytest.raises(normfuse.InputError, match=r"expected a torch\.nn\.Module"):
        normfuse.apply(torch.relu, (vectors(),), paths="shown")


def test_twice() -> None:
    model, ids = made(Text()), tokens()
    applied(model, ids)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(normfuse.InputError, match=r"holds already what normfuse\.apply would"):
        applied(model, ids)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


@pytest.mark.slow
def test_again_after_training_is_no_mistake() -> None:
    model, ids = made(Text()), tokens()
    applied(model, ids)
    made(model)
    before, done = applied(model, ids)
    assert len(done.written) == 17
    assert_same(model, before, ids)


def test_memory_that_two_weights_share() -> None:
    """Parts of one flat parameter, of which the whole is registered as well."""
    model = made(Stream())
    flat = torch.randn(2 * WIDTH_SQUARED, dtype=torch.float64)
    model.flat = nn.Parameter(flat)
    model.first.weight = nn.Parameter(model.flat.detach()[:WIDTH_SQUARED].view(16, 16))
    x = vectors()
    before, done = applied(model, x)
    assert "lie in the same memory" in done.left["first.weight"]
    assert torch.equal(model.flat, before.flat)
    assert_same(model, before, x)


WIDTH_SQUARED = 256


def test_the_option_of_torch_compile_names_the_way() -> None:
    from normfuse.options import Options

    with pytest.raises(normfuse.OptionError, match=r"call normfuse\.apply"):
        Options.checked({"memory": "in_place"})


@pytest.mark.parametrize(
    "norm",
    [
        layers.UnifiedNorm, layers.BatchNorm, layers.RepBatchNorm, layers.PowerNorm,
        lambda width: layers.PowerNorm(width, layer_scale=False),
    ],
    ids=["unified", "batch", "rep", "power", "plain power"],
)  # fmt: skip
def test_norms_whose_scale_is_made_of_several_tensors_stay_and_say_so(norm) -> None:
    """With weights as they are made the norm was called folded, or the model applied before."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), norm(WIDTH), nn.Linear(WIDTH, WIDTH)).double().eval()
    for name in ("running_var", "running_phi"):
        for part in model.modules():
            if hasattr(part, name):
                getattr(part, name).uniform_(0.5, 2.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    done = normfuse.apply(model, (torch.randn(3, 5, WIDTH, dtype=torch.float64),), paths="shown")
    (site,) = done.report.sites
    assert site.action == "kept"
    assert "not_in_place" in {refusal.code for refusal in site.refusals.values()}
    assert sum(done.report.after.values()) == 1
    assert not done.written
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
