"""Random networks: whatever is written, each stays the same function."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

from normfuse.in_place.applying import RULES
from normfuse.in_place.held import Held, Place
from normfuse.in_place.plan import plan
from normfuse.options import Options
from normfuse.verify.judge import DOUBLE_BOUND
from tests.fuzz.network import Case, build, copies
from tests.fuzz.properties import copied
from tests.fuzz.recipe import Recipe
from tests.fuzz.strategy import recipes

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.json"))
OPTIONS = Options.checked({"only": RULES, "verify": "off"}, prefix="")


def check(recipe: Recipe) -> int:
    """Run a network with what would be written; returns how many tensors that are."""
    case = build(recipe, torch.float64)
    captured = case.capture()
    program = case.program(captured)
    program.copies_tables = True
    model = nn.Module()
    for number, weight in enumerate(case.weights):
        model.register_buffer(f"w{number}", weight)
    made = plan([partial(copied, program)], Held(model), OPTIONS)
    new = [made.change[Place.of(w)].value if Place.of(w) in made.change else w for w in case.weights]
    before, after = _run(case, case.weights), _run(case, new)
    casts = any(getattr(n.meta.get("val"), "dtype", None) is torch.float32 for n in captured.graph.nodes)
    for found, expected in zip(after, before, strict=True):
        if expected.is_floating_point() and bool(expected.isfinite().all()):
            # Values of norms are of size 1, whatever cancels in them.
            size = expected.norm() + expected.numel() ** 0.5
            assert (found - expected).norm() <= (1e-4 if casts else 100 * DOUBLE_BOUND) * size
    return len(made.change)


def _run(case: Case, weights: tuple[Tensor, ...] | list[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    return case.function(*copies(case.given), *copies(weights))


@pytest.mark.parametrize(
    "path", [CORPUS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in CORPUS[1:])], ids=lambda p: p.stem
)
def test_networks_that_broke_something_once(path: Path) -> None:
    check(Recipe.from_json(path.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_random_networks() -> None:
    written = []

    @seed(11)
    @settings(
        max_examples=60, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(recipes())
    def run(recipe: Recipe) -> None:
        written.append(check(recipe))

    run()
    assert sum(map(bool, written)) >= len(written) / 2
