"""Random networks: whatever is written, each stays the same function."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from normfuse.in_place.applying import RULES
from normfuse.in_place.centred import centred_parts
from normfuse.in_place.held import Held, Place
from normfuse.in_place.parts import Parts
from normfuse.in_place.plan import plan
from normfuse.in_place.propose import values_of
from normfuse.ir.calls import aten, bind
from normfuse.ir.program import Program
from normfuse.options import Options
from normfuse.rms_norm import centred, rms_norm
from normfuse.verify.judge import DOUBLE_BOUND
from tests.fuzz.network import Case, build, copies
from tests.fuzz.properties import copied
from tests.fuzz.recipe import Recipe
from tests.fuzz.strategy import recipes

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.json"))
OPTIONS = Options.checked({"only": RULES, "verify": "off"}, prefix="")
RMS = Options.checked({"only": ["recentre"], "policy": "convert", "verify": "off"}, prefix="")


def check(recipe: Recipe) -> tuple[int, int]:
    """Run a network with what would be written, and with RMSNorms; returns how many tensors and norms."""
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
    _compare(after, before, casts)
    parts = centred_parts(_with_modules(program), [copied(program)], Held(model), values_of(made.change), RMS)
    torch.manual_seed(0)
    _compare(_Changed(program.gm, parts).run(*copies(case.given), *copies(new)), before, casts)
    return len(made.change), len(parts.norms)


def _compare(after: list[Tensor], before: list[Tensor], casts: bool) -> None:
    for found, expected in zip(after, before, strict=True):
        if expected.is_floating_point() and bool(expected.isfinite().all()):
            # Values of norms are of size 1, whatever cancels in them.
            size = expected.norm() + expected.numel() ** 0.5
            assert (found - expected).norm() <= (1e-4 if casts else 100 * DOUBLE_BOUND) * size


def _with_modules(program: Program) -> nn.Module:
    """A module for each norm and lookup of the graph, by the names of their nodes."""
    model = nn.Module()
    for node in program.gm.graph.nodes:
        kind = {aten.layer_norm.default: nn.LayerNorm(1), aten.embedding.default: nn.Embedding(1, 1)}
        if node.target in kind:
            node.meta["module_path"] = node.name
            model.add_module(node.name, kind[node.target])
    return model


class _Changed(Interpreter):
    """The graph with some norms as RMSNorms, and some lookups without their mean."""

    def __init__(self, gm: GraphModule, parts: Parts) -> None:
        super().__init__(gm)
        self._parts = parts

    def run_node(self, n: Node) -> Any:
        if n.name in self._parts.norms:
            bound = bind(n)
            x, weight, bias = (bound[key] and self.env[bound[key]] for key in ("input", "weight", "bias"))
            return rms_norm(x, x.shape[-1], weight, bias, bound["eps"])
        value = super().run_node(n)
        return centred(value) if n.name in self._parts.lookups else value


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
    written, normed = [], []

    @seed(11)
    @settings(
        max_examples=60, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(recipes())
    def run(recipe: Recipe) -> None:
        tensors, norms = check(recipe)
        written.append(tensors)
        normed.append(norms)

    run()
    assert sum(map(bool, normed)) >= len(normed) / 10
    assert sum(map(bool, written)) >= len(written) / 2
