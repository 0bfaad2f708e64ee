"""Norms of values without a mean compute an RMSNorm in the model itself, and there is a way back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfuse
from normfuse.in_place.centred_layer_norm import CentredLayerNorm
from tests.in_place.models import (
    WIDTH,
    Block,
    Scaled,
    SecondHead,
    Stream,
    Text,
    applied,
    assert_same,
    made,
    outputs,
    tokens,
    vectors,
)

RMS = {"norms": "rms_norm"}


class Shared(nn.Module):
    """One norm, of a stream and of what the model is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x)) + self.norm(x))


class Bare(Stream):
    """The last norm has no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)


class Twice(nn.Module):
    """One table, of which one lookup enters a stream; ``second`` is what another one does."""

    def __init__(self, second: Callable[[Text, Tensor], Tensor]) -> None:
        super().__init__()
        self.text, self.second = Text(tied=True), second

    def forward(self, ids: Tensor) -> Tensor:
        return self.text(ids) + self.second(self.text, ids.flip(1))


class Both(Text):
    """What is looked up enters the stream, and its mean is read as well."""

    def __init__(self) -> None:
        super().__init__(tied=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(self.norm(self.blocks(x))) + x.mean(-1, keepdim=True)


class Normed(Text):
    """A norm behind the table, as BLOOM has it: what it returns is centred explicitly."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        self.first = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.first(self.table(ids)))))


#: Networks, what they are called with, the norms that compute an RMSNorm, and the lookups that are centred.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, str]] = {
    "untied": (Text, tokens, "blocks.0.norm blocks.1.norm norm", ""),
    "tied": (lambda: Text(tied=True), tokens, "blocks.0.norm blocks.1.norm norm", "table"),
    "two streams": (
        lambda: Twice(lambda text, ids: text(ids)), tokens,
        "text.blocks.0.norm text.blocks.1.norm text.norm", "text.table",
    ),
    "one stream, one norm": (
        lambda: Twice(lambda text, ids: text.head(text.norm(text.table(ids)))), tokens, "", "",
    ),
    "one stream, one that wants the mean": (
        lambda: Twice(lambda text, ids: text.table(ids).mean(-1, keepdim=True)), tokens, "", "",
    ),
    "a norm in front": (Normed, tokens, "", ""),
    "one lookup for both": (Both, tokens, "", ""),
    "shared block": (lambda: Stream(times=3), vectors, "block.norm norm", ""),
    "layer scale": (Scaled, vectors, "block.norm norm", ""),
    "a second head": (SecondHead, vectors, "", ""),
    "a shared norm": (Shared, vectors, "", ""),
    "no weight": (Bare, vectors, "block.norm", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays_and_comes_back(name: str) -> None:
    make, inputs, norms, lookups = CASES[name]
    model, x = made(make()), inputs()
    objects = dict(model.named_modules())
    before, done = applied(model, x, keep_originals=True, **RMS)
    assert (" ".join(done.parts.norms), " ".join(done.parts.lookups)) == (norms, lookups)
    assert [n for n, part in model.named_modules() if type(part) is CentredLayerNorm] == norms.split()
    assert all(objects[n] is part for n, part in model.named_modules())
    assert_same(model, before, x)
    if norms:
        assert "compute an RMSNorm now" in str(done)
    done.undo()
    assert CentredLayerNorm not in map(type, model.modules())
    assert all(map(torch.equal, outputs(model, x), outputs(before, x)))


@pytest.mark.parametrize("tied", [False, True])
def test_a_block_that_is_compiled_on_its_own_has_an_rms_norm(tied: bool) -> None:
    model, x = made(Text(tied)), tokens()
    before, _ = applied(model, x, **RMS)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="normfuse", options={"normfuse.inner": "eager"})
    assert_same(model, before, x)
    assert [site.kind for site in normfuse.last_report().sites] == ["rms_norm"]


def test_what_one_of_the_calls_shown_does_not_centre_stays() -> None:
    model, x = made(Stream()), vectors()
    before, done = applied(model, x, also=[((x,), {"hidden": True})], **RMS)
    assert not done.parts
    assert_same(model, before, x, hidden=True)


def test_in_training_dropout_brings_a_mean_back() -> None:
    model, x = made(Stream(dropout=0.5)), vectors()
    before, done = applied(model, x, training=True, **RMS)
    assert [*done.parts.norms] == ["block.norm"]  # what the first layer writes goes through no dropout
    for network in (model, before):
        network.train()
    torch.manual_seed(1)
    wanted = outputs(before, x)
    torch.manual_seed(1)
    for found, expected in zip(outputs(model, x), wanted, strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_recomputed_blocks() -> None:
    model, x = made(Stream()), vectors()
    model.recompute = True
    before, done = applied(model, x, training=True, **RMS)
    for network in (model, before):
        network(x).square().sum().backward()
    assert_same(model, before, x)
    found, expected = model.head.bias.grad, before.head.bias.grad
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert "norm" in done.parts.norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_verification_runs_the_norms(dtype: torch.dtype) -> None:
    model, x = made(Text(tied=True), dtype), tokens()
    done = normfuse.apply(model, (x,), paths="shown", **RMS)
    assert len(done.parts.norms) == 3
    assert outputs(model, x)[0].dtype == dtype


def test_a_norm_that_verification_rejects_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Text(tied=True))
    monkeypatch.setattr(CentredLayerNorm, "forward", lambda self, x: x)
    hooks = len(model.table._forward_hooks)
    with pytest.raises(normfuse.VerificationError, match="differs from itself"):
        normfuse.apply(model, (tokens(),), paths="shown", **RMS)
    assert CentredLayerNorm not in map(type, model.modules())
    assert len(model.table._forward_hooks) == hooks


def test_weights_of_the_model_as_it_was_are_not_loaded() -> None:
    model = made(Text())
    before, _ = applied(model, tokens(), **RMS)
    with pytest.raises(
        RuntimeError, match=r"blocks\.0\.norm reads values without a mean since normfuse\.apply"
    ):
        copy.deepcopy(model).load_state_dict(before.state_dict(), strict=False)
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert_same(again, before, torch.arange(6)[None])
    part = {name: value for name, value in before.state_dict().items() if name.startswith("head")}
    again.load_state_dict(part, strict=False)


def test_norms_may_follow_later_and_not_twice() -> None:
    model, x = made(Text()), tokens()
    before, _ = applied(model, x)
    _, done = applied(model, x, **RMS)
    assert (len(done.parts.norms), len(done.written)) == (3, 0)
    assert_same(model, before, x)
    with pytest.raises(normfuse.InputError, match="applied before"):
        applied(model, x, **RMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norms": "crms_norm"}, "norms takes 'keep' or 'rms_norm', not 'crms_norm'"),
        ({**RMS, "skip": ["recentre"]}, "rests on what recentre writes"),
        ({**RMS, "only": ["fold_scale"]}, "rests on what recentre writes"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(normfuse.OptionError, match=message):
        applied(made(Text()), tokens(), **options)


def test_a_program_does_not_say_where_the_model_stands_in_it() -> None:
    model, x = made(Stream()), vectors()
    with pytest.raises(normfuse.InputError, match="pass pairs"):
        applied(model, x, also=[torch.export.export(model, (x,), strict=True)], **RMS)


def test_a_block_of_its_own_is_what_it_is_called_with() -> None:
    """Alone, a block does not know what it reads, so its norm stays."""
    model, x = made(Block()), vectors()
    _, done = applied(model, x, **RMS)
    assert not done.parts
