"""A short run of the fuzzer, and bugs planted to see that it finds them."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from normfuse.analysis import absorb
from normfuse.passes.place import Placement
from tests.fuzz import campaign, properties
from tests.fuzz.campaign import Tally, find_failure, run_batch, shortfalls, summary
from tests.fuzz.changing import stays_current
from tests.fuzz.network import build
from tests.fuzz.properties import FIRES, check, copied
from tests.fuzz.reached import State, States, content
from tests.fuzz.recipe import Recipe

CASES = 80


def test_random_networks_hold_and_every_rule_fires():
    tally = Tally()
    assert find_failure(20_003, CASES, tally) is None
    assert tally.cases >= CASES
    assert shortfalls(tally.fired, tally.cases) == []
    assert tally.fired["converted"] >= tally.cases / 2


def _forgotten_layer_scale(node, found, maps, weights):
    """Drops the multiplication without giving its factor to the weights."""
    return absorb.absorb(found.operand, found.axis, maps, weights)


def _folded_for_one_use_only(self, leaf, before, original=Placement.fold):
    """The second reader of a weight gets it as it was."""
    readers = self.__dict__.setdefault("readers", {})
    made = original(self, leaf, before)
    return made if readers.setdefault(leaf, before) is before else leaf.node


def _wrong_axis(self, leaf, before, original=Placement.fold):
    return original(self, replace(leaf, axis=0), before)


PLANTED = {
    "forgotten_layer_scale": lambda: patch("normfuse.analysis.absorb._absorb_scale", _forgotten_layer_scale),
    "shared_weight": lambda: patch.object(Placement, "fold", _folded_for_one_use_only),
    "repeated_source": lambda: patch("normfuse.passes.lift.same_shape", lambda *_: True),
    "returned_weight": lambda: patch("normfuse.passes.hoist._copy", lambda *_: None),
}
"""Bugs, and under the same names in ``planted/`` the smallest network in which each was found."""


@pytest.fixture
def _only_properties(monkeypatch):
    """The legal form of stages names some of the bugs before there is an output to look at."""
    monkeypatch.setenv("NORMFUSE_STRICT", "0")


@pytest.mark.usefixtures("_only_properties")
@pytest.mark.parametrize("bug", PLANTED)
def test_the_properties_see_a_planted_bug(bug):
    recipe = Recipe.from_json((Path(__file__).parent / "planted" / f"{bug}.json").read_text("utf-8"))
    check(recipe)
    with PLANTED[bug](), pytest.raises(AssertionError, match="output"):
        check(recipe)


@pytest.mark.slow
@pytest.mark.usefixtures("_only_properties")
@pytest.mark.parametrize("bug", PLANTED)
def test_the_search_finds_a_planted_bug(bug):
    with PLANTED[bug]():
        failure = find_failure(1, 250, shrink=False)
    assert failure is not None
    assert "output" in failure[1]


def test_a_failure_is_stored_and_a_batch_is_not_run_again(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    monkeypatch.setattr(campaign, "BATCH", 20)
    monkeypatch.setattr(campaign, "find_failure", partial(find_failure, shrink=False))
    with patch.object(Placement, "fold", _wrong_axis):
        run_batch(0, 20, tmp_path, tmp_path / "corpus")
    first = json.loads((tmp_path / "batch_00000.json").read_text())
    assert first["failure"]
    assert first["cases"] < 20
    assert len(list((tmp_path / "corpus").glob("*.json"))) == 1
    with patch.object(campaign, "run_batch", side_effect=AssertionError("not again")):
        assert campaign.main(["--cases", "20", "--processes", "1", "--folder", str(tmp_path)]) == 1


def test_figures_add_up():
    one = {"cases": 10, "distinct": 9, "seconds": 1.5, "fired": {"lift": 4}, "failure": None}
    two = {**one, "fired": {"lift": 3, "hoist": 1}, "failure": "AssertionError: no"}
    total = summary([one, two])
    assert (total["cases"], total["distinct"], total["seconds"]) == (20, 18, 3.0)
    assert total["fired"] == {"lift": 7, "hoist": 1}
    assert total["failures"] == ["AssertionError: no"]


@pytest.mark.parametrize("name", FIRES)
def test_a_rule_that_never_fires_is_named(name):
    fired = Counter(dict.fromkeys(FIRES, 50))
    assert shortfalls(fired, 1000) == []
    fired[name] = 19
    assert shortfalls(fired, 1000) == [name]


def test_orders_that_meet_go_on_as_one_and_end_where_they_would_alone():
    recipe = Recipe.from_json((Path(__file__).parent / "planted" / "shared_weight.json").read_text("utf-8"))
    case = build(recipe, torch.float64)
    program, orders, runs = case.program(case.capture()), list(islice(properties._orders(), 6)), []

    def counted(*given, **options):
        runs.append(options)
        return properties.rewritten(*given, **options)

    states = States(program, counted)
    for order in orders:
        alone, folded = program, []
        for rules in order:
            alone, _, more = properties.rewritten(alone, only=list(rules))
            folded += more
        assert content(states.after(order)) == content(State(alone, folded))
    assert len({content(states.after((rules,))) for rules in orders[0]}) > 1, "all rules do the same here"
    assert len(runs) < sum(map(len, orders))


def test_the_properties_see_a_stale_weight():
    """Version counters alone are not enough for one of these writers."""
    recipe = Recipe.from_json((Path(__file__).parent / "planted" / "shared_weight.json").read_text("utf-8"))
    case = build(recipe, torch.float64)
    program = case.program(case.capture())
    blind = [
        patch("normfuse.folding.known.Known._were_written", lambda *_: False),
        patch("normfuse.folding.watch.Watch.has_changed", lambda *_: False),
        patch("normfuse.folding.writers.forget", lambda *_: set()),
    ]

    def after_any_writer() -> None:
        for seed in range(12):
            stays_current(copied(program), seed)

    after_any_writer()
    with ExitStack() as stack:
        for one in blind:
            stack.enter_context(one)
        with pytest.raises(AssertionError, match="is stale after"):
            after_any_writer()
