"""What else a model can do: calls that are shown restrict what is written, others are the caller's word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normfuse
from tests.in_place.models import (
    Images,
    Stream,
    Text,
    applied,
    assert_same,
    images,
    made,
    outputs,
    tokens,
    vectors,
)

STREAM = {f"{name}.{kind}" for name in ("first", "block.down") for kind in ("weight", "bias")}


def test_nothing_is_written_without_the_callers_word() -> None:
    model, x = made(Stream()), vectors()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(normfuse.InputError, match="paths='shown'"):
        normfuse.apply(model, (x,))
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    with pytest.raises(normfuse.OptionError, match="paths takes 'shown'"):
        normfuse.apply(model, (x,), paths="all")


def test_a_call_that_returns_the_stream_keeps_what_writes_it() -> None:
    """Not shown, that call would return the stream without its mean: this is what the word is about."""
    model, x = made(Stream()), vectors()
    before, done = applied(model, x, also=[((x,), {"hidden": True})])
    assert set(done.left) == STREAM
    assert "in call 2 of those that were shown" in done.left["first.weight"]
    assert "block.up.weight" in done.written
    assert_same(model, before, x)
    assert_same(model, before, x, hidden=True)
    before, done = applied(model, x)
    assert set(done.written) == STREAM
    assert (outputs(model, x, hidden=True)[1] - outputs(before, x, hidden=True)[1]).norm() > 0.1


class Hidden(nn.Module):
    """Another method of a model, as a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.hidden(x)


def test_another_method_is_shown_as_a_program() -> None:
    model, x = made(Stream()), vectors()
    other = torch.export.export(Hidden(model), (x,))
    before, done = applied(model, x, also=[other])
    assert set(done.left) == STREAM
    assert_same(Hidden(model), Hidden(before), x)


def test_a_program_of_another_model_says_nothing() -> None:
    model, x = made(Stream()), vectors()
    other = torch.export.export(made(Stream()), (x,))
    with pytest.raises(normfuse.InputError, match="reads no weight of this Stream"):
        applied(model, x, also=[other])


def test_in_training_dropout_keeps_what_writes_through_it() -> None:
    """The masks are the same; a mean that is dropped in places is none any more."""
    model, x = made(Stream(dropout=0.4)), vectors()
    before, done = applied(model, x, training=True)
    assert set(done.left) == {"block.down.weight", "block.down.bias"}
    assert {"first.weight", "block.up.weight"} <= set(done.written)
    assert_same(model, before, x)
    assert not model.training
    model.train()
    before.train()
    torch.manual_seed(1)
    found = model(x)
    torch.manual_seed(1)
    assert (found - before(x)).norm() <= 1e-12 * found.norm()


@pytest.mark.slow
def test_in_training_batch_norms_stay() -> None:
    model, x = made(Images()), images()
    _, done = applied(model, x, training=True)
    assert done.written == {}
    assert {s.refusals["fold_affine"].code for s in done.report.sites} == {"not_in_place"}


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recomputed_blocks_and_their_gradients(training: bool) -> None:
    """Gradient checkpointing; gradients of what was not written are the same."""
    model, x = made(Stream()), vectors()
    before, _ = applied(model, x, training=training)
    for one in (model, before):
        one.recompute = True
        one(x).square().sum().backward()
    assert_same(model, before, x)
    found, expected = model.head.bias.grad, before.head.bias.grad
    assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.slow
def test_a_captured_checkpoint_is_left_alone() -> None:
    """Where a block is an operator with a graph of its own, its weights are read as they are."""
    model, x = made(Stream()), vectors()
    model.recompute = True
    before, _ = applied(model, x)
    assert_same(model, before, x)


def test_a_pair_is_expected() -> None:
    model, ids = made(Text()), tokens()
    with pytest.raises(normfuse.InputError, match="pairs"):
        applied(model, ids, also=[ids])
