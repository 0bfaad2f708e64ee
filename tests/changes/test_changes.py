"""After every way to change a weight the compiled model answers as the model itself does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import normfuse
from normfuse.folding import native
from normfuse.folding.frozen import living_frozen
from tests.changes import ways  # noqa: F401
from tests.changes.models import image, network
from tests.changes.registry import WAYS, Way, page
from tests.freezing.holding import hold

PAGE = Path(__file__).parents[2] / "docs" / "changing-weights.md"
#: In float64, a few hundred roundings deep.
BOUND = 1e-11


class Compiled:
    """``beside``: another model of the class has the same graph, and is called before each call."""

    def __init__(self, frozen: bool, beside: bool = False) -> None:
        torch._dynamo.reset()
        self.model = network()
        options = {"normfuse.freeze": "on"} if frozen else {"normfuse.inner": "eager"}
        self._fast = torch.compile(self.model, backend="normfuse", options=options)
        other = copy.deepcopy(self.model) if beside else None
        self._other = None if other is None else torch.compile(other, backend="normfuse", options=options)
        for _ in range(3 if beside else 1):
            self.difference()
        assert normfuse.last_report().after == {"rms_norm": 3}
        assert normfuse.last_report().frozen == frozen

    def difference(self) -> float:
        with torch.no_grad():
            expected = self.model(image())
            if self._other is not None:
                self._other(image())
            return float((self._fast(image()) - expected).norm() / expected.norm())

    def answers(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(image())


@pytest.mark.parametrize("how", ["folded", "frozen", pytest.param("beside another", marks=pytest.mark.slow)])
@pytest.mark.parametrize("one", [pytest.param(w, id=w.change.__name__) for w in WAYS])
def test_a_change(one: Way, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, beside = how != "folded", how == "beside another"
    monkeypatch.setattr(native, "was_imported", lambda: frozen)  # in C, or else in Python
    if frozen:
        hold(monkeypatch)
    compiled = Compiled(frozen, beside)
    if beside:
        assert len(living_frozen()) == 2
    for again in range(2 if frozen else 3):  # compiled anew by each change, nothing is left of the one before
        before = compiled.answers()
        torch.manual_seed(again)
        one.change(compiled.model)
        assert again or not torch.equal(before, compiled.answers()), "the change changes nothing"
        if one.remedy:
            assert compiled.difference() > BOUND
            assert normfuse.invalidate(compiled.model) > 0
        for _ in range(4 if beside else 2):
            assert compiled.difference() < BOUND


def test_the_page_says_what_is_tested() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.changes > docs/changing-weights.md"
