"""What is written leaves the model the same function, and nothing is copied afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normfuse
from normfuse.in_place import applied as applied_module
from normfuse.in_place.plan import Plan, plan
from tests.in_place.models import (
    Block,
    Branches,
    Images,
    Normed,
    Scaled,
    SecondHead,
    Stream,
    Text,
    applied,
    assert_same,
    copied_bytes,
    images,
    made,
    outputs,
    tokens,
    vectors,
)

#: Networks, what they are called with, and how many tensors are written.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "untied": (Text, tokens, 17),
    "tied": (lambda: Text(tied=True), tokens, 12),
    "shared_block": (lambda: Stream(times=3), vectors, 12),
    "second_head": (SecondHead, vectors, 8),
    "layer_scale": (Scaled, vectors, 15),
    "dropout": (lambda: Stream(dropout=0.3), vectors, 12),
    "batch_norms": (Images, images, 10),
    "batch_norms_without_biases": (lambda: Images(bias=False), images, 8),
    "batch_norms_without_weights": (lambda: Images(affine=False), images, 8),
    "batch_norm_first": (Normed, images, 5),
    "batch_norm_beside": (Branches, images, 7),
}


#: The others are run with the slow tests.
USUAL = ("tied", "layer_scale", "batch_norms_without_biases")


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_the_function_stays_and_nothing_is_copied(name: str) -> None:
    make, inputs, count = CASES[name]
    model, x = made(make()), inputs()
    parameters, versions = (
        dict(model.named_parameters()),
        {n: p._version for n, p in model.named_parameters()},
    )
    before, done = applied(model, x)
    assert len(done.written) == count
    assert done.left == {}
    assert_same(model, before, x)
    for parameter, value in model.named_parameters():
        assert value is parameters[parameter]
        assert (value._version > versions[parameter]) == (parameter in done.written)
        assert torch.equal(value, before.get_parameter(parameter)) == (parameter not in done.written)
    vector_bytes = 8 * 8
    assert copied_bytes(model, x) <= (2 * vector_bytes if "without" in name else 0)


def test_without_apply_the_copies_are_there() -> None:
    model, x = made(Text()), tokens()
    assert copied_bytes(model, x) > 0.5 * sum(p.nbytes for p in model.blocks.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_errors_stay_within_the_budget(dtype: torch.dtype) -> None:
    model, ids = made(Text(), dtype), tokens()
    before, _ = applied(model, ids)
    found = normfuse.verify(before, model, (ids,))
    assert found.ok, str(found)
    assert found.error_ratio <= 1.5
    assert copied_bytes(model, ids) == 0


def test_a_bias_that_no_reader_takes_stays_in_the_norm() -> None:
    model, x = made(Stream(bias=False)), vectors()
    before, done = applied(model, x)
    assert (done.written["block.norm.weight"], done.written["block.norm.bias"]) == ("1", "bias / weight")
    assert_same(model, before, x)
    assert copied_bytes(model, x) == model.block.up.weight.shape[0] * 8


@pytest.mark.slow
def test_a_norm_that_cannot_be_given_away_says_why() -> None:
    """A channel without a weight has a bias, which cannot be in units of the weight."""
    model, x = made(Stream(bias=False)), vectors()
    with torch.no_grad():
        model.block.norm.weight[3] = 0
    before, done = applied(model, x)
    site = next(s for s in done.report.sites if s.module == "block.norm")
    assert site.refusals["fold_scale"].code == "not_in_place"
    assert "has no weight or bias of its own that could take" in site.refusals["fold_scale"].message
    assert torch.equal(model.block.norm.weight, before.block.norm.weight)
    assert "block.down.weight" in done.written
    assert_same(model, before, x)


@pytest.mark.slow
def test_a_batch_norm_goes_on_with_the_statistics_of_what_it_reads() -> None:
    """In training it is what it was, but for eps beside variances of at least 0.3."""
    model, x = made(Images(bias=False)), images()
    before, _ = applied(model, x)
    model.train()
    before.train()
    for found, expected in zip(outputs(model, x), outputs(before, x), strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    model.eval()
    before.eval()
    for found, expected in zip(outputs(model, x), outputs(before, x), strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_undo_gives_every_bit_back() -> None:
    model, x = made(Text(tied=True)), tokens()
    before, done = applied(model, x, keep_originals=True)
    assert not torch.equal(model.blocks[0].norm.weight, before.blocks[0].norm.weight)
    done.undo()
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    with pytest.raises(normfuse.InputError, match="undone already"):
        done.undo()


def test_undo_needs_the_originals_and_loses_no_training() -> None:
    model, x = made(Stream()), vectors()
    _, done = applied(model, x)
    with pytest.raises(normfuse.InputError, match="keep_originals=True"):
        done.undo()
    model = made(Stream())
    _, done = applied(model, x, keep_originals=True)
    with torch.no_grad():
        model.block.down.weight.add_(1)
    trained = [p.clone() for p in model.parameters()]
    with pytest.raises(normfuse.InputError, match=r"block\.down\.weight was changed after"):
        done.undo()
    assert all(map(torch.equal, model.parameters(), trained))


@pytest.mark.slow
def test_an_optimizer_goes_on_with_the_same_parameters() -> None:
    model, x = made(Stream()), vectors()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    applied(model, x)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, model.parameters(), before))


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth write fails; the four before it are taken back, and undoing that fails is undone as well."""
    model, x = made(Text()), tokens()
    put, count = applied_module.Written.put, iter(range(10_000))

    def failing(self: applied_module.Written, value: Tensor) -> None:
        if next(count) == 4:
            raise MemoryError
        put(self, value)

    before = {k: v.clone() for k, v in model.state_dict().items()}
    with monkeypatch.context() as patched:
        patched.setattr(applied_module.Written, "put", failing)
        with pytest.raises(MemoryError):
            applied(model, x)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    _, done = applied(model, x, keep_originals=True)
    written, count = {k: v.clone() for k, v in model.state_dict().items()}, iter(range(10_000))
    with monkeypatch.context() as patched:
        patched.setattr(applied_module.Written, "put", failing)
        with pytest.raises(MemoryError):
            done.undo()
    assert all(map(torch.equal, model.state_dict().values(), written.values()))


def test_what_is_further_off_than_allowed_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that is wrong in one entry is found when the outputs are compared."""
    model, x = made(Stream()), vectors()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def wrong(*given: Any) -> Plan:
        found = plan(*given)
        next(iter(found.change.values())).value[0] += 1
        return found

    monkeypatch.setattr(sys.modules[normfuse.apply.__module__], "plan", wrong)
    with pytest.raises(normfuse.VerificationError, match="nothing is written"):
        normfuse.apply(model, (x,), paths="shown")
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_it_prints_what_was_done() -> None:
    model, x = made(Stream()), vectors()
    _, done = applied(model, x)
    assert "12 tensors hold folded values now" in str(done)
    assert done.written["block.norm.weight"] == "1"
    assert done.written["block.down.weight"].startswith("sub(block.down.weight, mean(block.down.weight")
    assert repr(done).startswith("<Applied: found 2 layer_norm")


@pytest.mark.slow
def test_rules_can_be_left_out() -> None:
    model, x = made(Stream()), vectors()
    _, done = applied(model, x, skip=["fold_scale"])
    assert set(done.written) == {f"{n}.{k}" for n in ("first", "block.down") for k in ("weight", "bias")}
    with pytest.raises(normfuse.OptionError, match="no place for what compress does"):
        applied(model, x, only=["compress"])


@pytest.mark.slow
def test_a_single_block_is_a_model_as_well() -> None:
    """Its stream comes from outside and leaves it, so only what reads the norm changes."""
    model, x = made(Block()), vectors()
    before, done = applied(model, x)
    assert set(done.written) == {"norm.weight", "norm.bias", "up.weight", "up.bias"}
    assert_same(model, before, x)
