"""Every network that ever broke a property, against all of them."""

from __future__ import annotations

import pytest

from tests.fuzz import strategy
from tests.fuzz.campaign import CORPUS
from tests.fuzz.network import STEPS
from tests.fuzz.properties import check
from tests.fuzz.recipe import Recipe

STORED = sorted(CORPUS.glob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_network_that_failed_once_holds(path):
    check(Recipe.from_json(path.read_text(encoding="utf-8")), thorough=True)


def test_there_is_a_corpus():
    assert len(STORED) >= 3


def test_a_recipe_survives_being_stored():
    for path in STORED:
        text = path.read_text(encoding="utf-8")
        assert Recipe.from_json(text).to_json() + "\n" == text


def test_every_piece_is_drawn():
    """A piece that the strategy forgets would never be tried."""
    for kind, variants in STEPS.items():
        assert set(variants) == {*strategy.FRIENDLY[kind], *strategy.HOSTILE[kind]}
