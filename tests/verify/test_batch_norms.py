"""Networks of batch norms: what is right stays, what is wrong goes alone, and rewrite and verify agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import normfuse
from normfuse.folding.recipe import Recipe
from normfuse.passes.work import Work
from normfuse.rewriting import Rewritten, as_program
from normfuse.verify.comparing import Pair
from normfuse.verify.oracle import run_wide
from normfuse.verify.original import Original
from normfuse.verify.probe import Probe
from normfuse.verify.reach import NO_REACH
from normfuse.verify.watch import Watch
from tests.verify.networks import network

EPS = torch.finfo(torch.float32).eps


def actions(made: Rewritten) -> list[str]:
    return [site.action for site in made.report.sites]


def disagreement(number: int, seed: int) -> str:
    """What is undone although it is right, or judged otherwise by verify; empty when nothing is."""
    model, x = network(number, seed)
    program = as_program(model, (x,))
    made = normfuse.rewrite(program)
    found = normfuse.verify(program, made.program)
    undone = [str(site.refusal) for site in made.report.sites if site.action == "reverted"]
    return "" if found.ok and not undone else f"network {number}, seed {seed}: {undone} {found.verdict}"


@pytest.mark.parametrize(("number", "seed"), [(8, 4)])
def test_rewrite_and_verify_agree_and_undo_nothing_that_is_right(number, seed):
    assert disagreement(number, seed) == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_they_agree_on_twenty_networks_with_ten_seeds_each(number):
    assert [text for seed in range(10) if (text := disagreement(number, seed))] == []


class Amplifies(nn.Module):
    """Attention over what large inputs leave saturates, and makes much of every rounding ahead of it."""

    def __init__(self, depth: int = 12, width: int = 16) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if i else 3, width, 3, padding=1) for i in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))
        self.kept, self.last = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = torch.relu(norm(conv(x)))
            x = x + 0.5 * y if i else y
        t = x.flatten(2)
        t = t @ torch.softmax(0.02 * t.transpose(1, 2) @ t, -1)
        return self.last(torch.relu(self.kept(t.view_as(x).roll(1, 1))).mean((2, 3)))


@pytest.mark.parametrize("seed", [13])
def test_all_folds_survive_where_the_original_itself_hardly_does(seed):
    torch.manual_seed(seed)
    model = Amplifies().eval()
    for norm in (*model.norms, model.kept):
        norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 1.5)
        norm.weight.data.normal_(1, 0.2), norm.bias.data.normal_(0, 0.2)
    made = normfuse.rewrite(model, (torch.randn(2, 3, 24, 24),))
    assert actions(made) == ["folded"] * 12 + ["kept"]


class Chain(nn.Module):
    """Four batch norms, each folded into the convolution ahead of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        for norm in self.norms:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.nn.functional.gelu(norm(conv(x)))
        return x


@pytest.fixture(scope="module")
def chain() -> ExportedProgram:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return as_program(Chain().eval(), (x,))


def rewritten_with(
    fault: Callable[[Tensor], Tensor], of: str, program: ExportedProgram, **options: str
) -> Rewritten:
    """With a fault in the folded weight that is made of the weight of this name."""
    compute = Recipe.compute

    def broken(self: Recipe, sources: list[Tensor]) -> Tensor:
        made = compute(self, sources)
        return fault(made) if self.label.startswith(of) and made.dim() > 1 else made

    with patch.object(Recipe, "compute", broken):
        return normfuse.rewrite(program, **options)


def first_entry(weight: Tensor) -> Tensor:
    made = weight.clone()
    made.view(-1)[0] *= 1.001
    return made


FAULTS = {
    "zeros": torch.zeros_like,
    "one entry": first_entry,
    "16 roundings": lambda w: w * (1 + 16 * EPS),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_weight_is_found_and_only_its_norm_is_undone(chain, fault):
    made = rewritten_with(fault, "convs.2", chain)
    assert actions(made) == ["folded", "folded", "reverted", "folded"]
    refusal = made.report.sites[2].refusal
    assert refusal.code == "over_budget"
    assert "allowed" in refusal.message
    free = rewritten_with(fault, "convs.2", chain, verify="off")
    assert not normfuse.verify(chain, free.program).ok


@pytest.mark.parametrize("guilty", [0, 2])
def test_the_guilty_norm_is_found_by_bisection_where_no_value_tells_it(chain, guilty):
    with patch("normfuse.verify.watch._written", lambda work: {}):
        made = rewritten_with(lambda w: w * 1.01, f"convs.{guilty}", chain)
    assert [i for i, action in enumerate(actions(made)) if action == "reverted"] == [guilty]


def test_what_is_given_up_and_changed_all_the_same_ends_with_the_original(chain, monkeypatch):
    """A rule that does not look at what verification forbids."""
    lifted = Watch._lifted

    def forgetful(self: Watch, work: Work) -> None:
        lifted(self, work)
        work.forbidden.clear()

    monkeypatch.setattr(Watch, "_lifted", forgetful)
    made = rewritten_with(torch.zeros_like, "convs.2", chain)
    assert actions(made) == ["reverted"] * 4
    assert {site.refusal.code for site in made.report.sites} == {"over_budget"}
    assert made.report.folded == 0
    (x,), _ = chain.example_inputs
    assert torch.equal(made.module()(x), chain.module()(x))


class Standardised(nn.Module):
    """A convolution whose weight is standardised at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return nn.functional.conv2d(x, (weight - mean) / torch.sqrt(var + 1e-5))


def test_a_standardised_weight_that_was_given_up_stays():
    x = torch.randn(2, 3, 9, 9)
    program = as_program(Standardised().eval(), (x,))
    assert actions(normfuse.rewrite(program)) == ["folded"]
    made = rewritten_with(lambda w: w * 1.01, "conv", program)
    assert actions(made) == ["reverted"]
    assert torch.equal(made.module()(x), program.module()(x))


def runs_of(action: Callable[[], object]) -> int:
    """Forward passes, those in float64 counted twice."""
    passes: list[int] = []
    run, call = Probe.run, Pair._run

    def wide(*args: Any) -> Any:
        passes.append(2)
        return run_wide(*args)

    def probe(self: Probe, inputs: Any) -> Any:
        passes.append(1)
        return run(self, inputs)

    def module(self: Pair, *args: Any) -> Any:
        passes.append(1)
        return call(self, *args)

    with (
        patch("normfuse.verify.original.run_wide", wide),
        patch("normfuse.verify.oracles.run_wide", wide),
        patch.object(Probe, "run", probe),
        patch.object(Pair, "_run", module),
    ):
        action()
    return sum(passes)


def passes(values: Any, again: Any, judge_one: Any, hostile: bool) -> Any:
    """The first look, with which every processor is content."""
    return {key: replace(judge_one(key, *held, NO_REACH), ok=True) for key, held in values.items()}


def test_the_price_is_25_runs(chain, monkeypatch):
    monkeypatch.setattr("normfuse.verify.measure.judged_twice", passes)
    monkeypatch.setattr("normfuse.verify.comparing.judged_twice", passes)
    told: list[str] = []
    assert runs_of(lambda: normfuse.rewrite(chain, progress=told.append)) == 25
    assert told[0] == "the original, on captured inputs"
    assert "the norms, on large mean inputs" in told
    made = normfuse.rewrite(chain, verify="off")
    assert runs_of(lambda: normfuse.verify(chain, made.program, progress=told.append)) == 24
    assert "large mean" in told
    assert runs_of(lambda: normfuse.verify(chain, made.program, thorough=True)) > 40


def test_a_rewrite_that_is_tried_again_runs_the_original_no_more(chain, monkeypatch):
    monkeypatch.setattr("normfuse.verify.second_look.NARROW", 0.0)  # no draws nearby, which are runs as well
    run = Original.run
    with patch.object(Original, "run", autospec=True, side_effect=run) as counted:
        made = rewritten_with(torch.zeros_like, "convs.2", chain)
    assert "reverted" in actions(made)
    assert counted.call_count == 6  # once for each set of inputs
