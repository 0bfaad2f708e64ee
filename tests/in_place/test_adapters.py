"""Adapters beside frozen layers, weights that a model computes, and quantization afterwards."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normfuse
from normfuse.in_place import additions
from tests.in_place.models import Stream, applied, assert_same, copied_bytes, made, vectors


class Adapted(nn.Module):
    """``W x + s B (A x)`` with several adapters, of which one is active, or none."""

    def __init__(self, base: nn.Linear, rank: int = 2, bias: bool = False) -> None:
        super().__init__()
        self.base, self.active = base, "one"
        names = ("one", "two")
        self.down = nn.ModuleDict({n: nn.Linear(base.in_features, rank, bias=bias) for n in names})
        self.up = nn.ModuleDict({n: nn.Linear(rank, base.out_features, bias=False) for n in names})

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        return result + 0.5 * self.up[self.active](self.down[self.active](x)) if self.active else result


class AdaptedStream(Stream):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.block.up, self.block.down = Adapted(self.block.up, bias=bias), Adapted(self.block.down)

    def use(self, adapter: str) -> AdaptedStream:
        self.block.up.active = self.block.down.active = adapter
        return self


def assert_same_with_each(model: AdaptedStream, before: AdaptedStream, x: Tensor) -> None:
    for adapter in ("one", "two", ""):
        assert_same(model.use(adapter), before.use(adapter), x)


def test_what_an_adapter_writes_is_centred_and_others_still_fit() -> None:
    """The norms stay as they are for the adapter that is not shown."""
    model, x = made(AdaptedStream()), vectors()
    before, done = applied(model, x, skip=["fold_scale"])
    assert {"block.down.base.weight", "block.down.up.one.weight"} <= set(done.written)
    assert "block.down.up.two.weight" not in done.written
    assert model.block.down.up["one"].weight.mean(0).abs().max() < 1e-15
    assert_same_with_each(model, before, x)


def test_adapters_that_read_a_norm_have_to_be_shown() -> None:
    """Each is shown as a program of the model in that state, and takes the norm's weight as well."""
    model, x = made(AdaptedStream(bias=True)), vectors()
    others = [torch.export.export(model.use(adapter), (x,)) for adapter in ("two", "")]
    before, done = applied(model.use("one"), x, also=others)
    assert {"block.norm.weight", "block.up.down.one.weight", "block.up.down.two.bias"} <= set(done.written)
    assert done.left == {}
    assert_same_with_each(model, before, x)
    assert copied_bytes(model.use("one"), x) == 0


def test_an_adapter_that_is_added_afterwards() -> None:
    """It writes what it likes: the norm of the stream still removes the mean."""
    model, x = made(Stream()), vectors()
    before, _ = applied(model, x)
    added = made(nn.Linear(32, 16))

    before.block.down = nn.Sequential(Sum(before.block.down, added))
    with pytest.warns(
        UserWarning, match=r"down, a Sequential, comes to a model after normfuse\.apply: it fits"
    ):
        model.block.down = nn.Sequential(Sum(model.block.down, added))
    assert_same(model, before, x)


def test_it_is_refused_where_norms_remove_no_mean() -> None:
    model, x = made(AdaptedStream()), vectors()
    before, done = applied(model, x, norms="rms_norm", keep_originals=True)
    children = dict(model.named_modules())
    with pytest.raises(
        normfuse.InputError, match=r"head, a Sum, .* whose norms remove no mean; add it before"
    ):
        model.head = Sum(model.head, nn.Linear(16, 3))
    with pytest.raises(normfuse.InputError, match="three, a Linear"):
        model.block.down.up["three"] = nn.Linear(2, 16)
    assert dict(model.named_modules()) == children
    assert_same(model, before, x)
    done.undo()
    model.block.down.up["three"] = nn.Linear(2, 16)


def test_what_brings_no_weights_of_its_own_is_no_addition(recwarn: pytest.WarningsRecorder) -> None:
    model, x = made(Stream()), vectors()
    before, _ = applied(model, x, norms="rms_norm")
    model.block = nn.Sequential(model.block, nn.Dropout())
    model.seen = nn.Identity()
    other = made(Stream())
    other.block.down = Sum(other.block.down, nn.Linear(32, 16))
    assert not [one for one in recwarn if "normfuse" in str(one.message)]
    assert_same(model.eval(), before, x)


def test_a_layer_made_of_another_is_warned_of_once() -> None:
    model, _ = made(Stream()), vectors()
    applied(model, vectors(), norms="rms_norm")
    with pytest.warns(UserWarning, match="comes to a model") as told:
        model.head, model.first = nn.Linear(16, 4), nn.Linear(16, 16)
    assert len(told) == 1


def test_a_model_that_is_gone_is_not_watched() -> None:
    model = made(Stream())
    applied(model, vectors())
    assert model in additions._MODELS
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Sum(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts)


def test_computed_weights_stay_with_the_reason() -> None:
    for wrap in (parametrizations.weight_norm, parametrizations.spectral_norm):
        model, x = made(Stream()), vectors()
        wrap(model.block.down)
        before, done = applied(model.eval(), x)
        left = {name for name in done.left if "parametrizations" in name}
        assert left
        assert not left & set(done.written)
        assert_same(model, before, x)


def test_removed_parametrizations_leave_weights_like_others() -> None:
    model, x = made(Stream()), vectors()
    parametrizations.weight_norm(model.block.down)
    nn.utils.parametrize.remove_parametrizations(model.block.down, "weight")
    before, done = applied(model, x)
    assert "block.down.weight" in done.written
    assert_same(model, before, x)


class Int8(nn.Module):
    """Weights of a linear layer in eight bits, with a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantized(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8(child))
    return model


def test_quantizing_what_was_applied_costs_what_it_costs() -> None:
    """The error of eight bits, against the model before, is that of quantizing it as it was.

    A column that is scaled changes the largest entries of rows, so the two errors differ as those of two
    models do: by less than half of them here. The norms that are left are bare: 1 and 0 in no bits at all.
    """
    model, x = made(Stream()), vectors()
    before, _ = applied(model, x)
    with torch.no_grad():
        expected = before(x)
        usual = (quantized(before)(x) - expected).norm()
        folded = (quantized(model)(x) - expected).norm()
    assert folded <= 1.5 * usual
    assert bool((model.block.norm.weight == 1).all())
