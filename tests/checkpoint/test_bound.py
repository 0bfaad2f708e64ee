"""The bound of a folded weight: never below an entry of it, and nothing where that is not known."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx import Graph, Node

from normfuse.folding import Recipe, whole
from normfuse.folding.bound import bound_of
from normfuse.folding.recipe import FOLD
from normfuse.ir.calls import aten
from normfuse.ir.emit import call
from tests.checkpoint.test_blocks import CASES, recipe, scale


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18])
def test_no_entry_is_larger(case: str, size: float) -> None:
    build, sources, _ = CASES[case]
    made, _ = recipe(build, *sources)
    given = [source * size for source in sources]
    bound = bound_of(made, given)
    assert math.isfinite(bound)
    largest = float(made.in_dtype(torch.float64).value(given).abs().max())
    assert largest <= bound * (1 + 1e-12)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_has_no_bound(bad: float) -> None:
    weight, vector = torch.ones(4, 3), torch.ones(3)
    weight[2, 1] = bad
    made, _ = recipe(scale(1), weight, vector)
    assert not bound_of(made, [weight, vector]) < math.inf
    assert not whole.can_hold(made, [weight, vector], torch.float32)


def divided(graph: Graph, weight: Node) -> Node:
    return call(graph, aten.div.Tensor, weight, 1e-30)


def test_a_step_that_is_not_known_has_no_bound() -> None:
    weight = torch.full((4, 3), 1e20)
    made, _ = recipe(divided, weight)
    assert bound_of(made, [weight]) == math.inf
    assert not whole.can_hold(made, [weight], torch.float32)


def test_what_the_model_itself_computes_has_no_bound() -> None:
    """In bfloat16 a sum may be infinite where the sum of the bounds is not."""
    weight, vector = torch.ones(4, 3), torch.ones(3)
    made, _ = recipe(scale(1), weight, vector)
    for node in made.body.nodes:
        node.meta.pop(FOLD, None)
    assert bound_of(made, [weight, vector]) == math.inf


def test_a_sum_that_is_scaled_is_not_bounded_by_its_terms() -> None:
    weight = torch.full((4, 3), 1.0)
    made, _ = recipe(lambda graph, w: call(graph, aten.add.Tensor, w, w, alpha=1e39), weight)
    assert bound_of(made, [weight]) == math.inf
    assert not whole.can_hold(made, [weight], torch.float32)


@pytest.mark.parametrize(("size", "holds"), [(1e18, True), (1e20, False)])
def test_the_bound_and_the_entries_agree(size: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bound tells, nothing is folded for the answer."""
    weight, vector = torch.full((4, 3), size), torch.full((3,), 1e19)
    made, _ = recipe(scale(1), weight, vector)
    folded = []
    plain = Recipe.value
    monkeypatch.setattr(Recipe, "value", lambda *given: folded.append(given) or plain(*given))
    assert whole.can_hold(made, [weight, vector], torch.float32) == holds
    assert bool(folded) != holds
