"""The population of rewritten models: what is far, choices that are held, and one row for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.corpus.rewriting as rewriting
from bench.corpus.population import POPULATION, read_population, render, write_population
from bench.corpus.rewriting import by_rewrite
from bench.corpus.routing import Routes

X = {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}


class Block(torch.nn.Module):
    """A norm that converts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.norm(self.first(x)))
        return result


class Branching(Block):
    """Captured by nobody."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if float(x.sum()) > 0 else 3)


def _row(model: torch.nn.Module) -> dict[str, Any]:
    return by_rewrite(model.eval(), X, lambda *_: None)


def test_a_model_that_converts() -> None:
    row = _row(Block())
    assert (row["route"], row["after"], row["centrings"]) == ("export", {"rms_norm": 1}, 0)
    assert [row[d]["status"] for d in ("float32", "bfloat16", "float64")] == ["ok"] * 3
    assert row["float64"]["distance"] < 1e-14


class Offset(Block):
    """An RMSNorm that adds 1 to its weight in float32, whatever the model computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight.float())
        result: torch.Tensor = self.last(h.type_as(x))
        return result


def test_what_the_model_rounds_to_float32_in_a_weight_is_judged_by_its_own_error() -> None:
    row = _row(Offset())
    assert row["folded"] == 1
    assert row["float64"]["status"] == "ok"
    assert row["float64"]["distance"] > rewriting.EXACT
    assert row["float64"]["ratio"] <= row["float64"]["allowed"]


class Mixed(Block):
    """Fails in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.first(torch.ones(8)))


@pytest.mark.parametrize(("model", "status"), [(Block, "crash"), (Mixed, "not captured")])
def test_a_model_that_does_not_run_itself_is_no_crash(
    model: type[Block], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("it fails")

    monkeypatch.setattr(rewriting.normfuse, "rewrite", crash)
    found = _row(model())
    assert found["float64"]["status"] == status
    assert ("the model itself fails" in found["float64"]["cause"]) == (model is Mixed)


def test_a_wrong_rewrite_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = rewriting.normfuse.rewrite

    def spoiled(*given: Any, **options: Any) -> Any:
        made = rewrite(*given, **options)
        for weight in made.program.state_dict.values():
            weight.data.mul_(1.05)
        return made

    monkeypatch.setattr(rewriting.normfuse, "rewrite", spoiled)
    row = _row(Block())
    assert [row[d]["status"] for d in ("float32", "bfloat16", "float64")] == ["far"] * 3


def test_a_model_that_is_not_exported_is_compiled() -> None:
    row = _row(Branching())
    assert (row["route"], row["after"]) == ("dynamo", {"rms_norm": 1})
    assert [row[d]["status"] for d in ("float32", "bfloat16", "float64")] == ["ok"] * 3


def _chosen(x: torch.Tensor) -> list[torch.Tensor]:
    best, values, smallest = x.topk(1), x.sort(-1, descending=True), x.min(0)
    return [*best, *values, *smallest, x.argmax(-1), x > 0, x.max(1, keepdim=True).values]


def test_choices_are_those_of_the_first_run() -> None:
    routes, x = Routes(), torch.tensor([[1.0, 1.001, -0.001], [3.0, 2.0, 1.0]])
    other = torch.tensor([[1.002, 1.0, 0.001], [3.0, 2.0, 1.0]])
    with routes.recording():
        wanted = _chosen(x)
    with routes.run():
        again = _chosen(x)
    assert routes.changed == 0
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))
    with routes.run():
        held = _chosen(other)
    assert routes.changed == 6
    assert all(torch.equal(a, b) for a, b in zip(wanted, held, strict=True) if not a.is_floating_point())
    assert held[0].tolist() == other.gather(1, wanted[1]).tolist() == [[1.0], [3.0]]
    assert held[-1].tolist() == [[1.0], [3.0]]


def test_other_choices_than_in_the_first_run_are_an_error() -> None:
    routes = Routes()
    with routes.recording():
        torch.ones(3).topk(2)
    with routes.run(), pytest.raises(ValueError, match="than in the first run"):
        torch.ones(4).sort()


def test_the_table_leaves_nothing_out(tmp_path: Path) -> None:
    made = _row(Block()) | {"bfloat16": {"status": "far", "ratio": 3.0, "allowed": 1.6, "cause": "output"}}
    (tmp_path / "a.json").write_text(json.dumps({"architecture": "a", "recipe": "narrow", "rewrite": made}))
    (tmp_path / "b.json").write_text(json.dumps({"architecture": "b", "reason": "no recipe"}))
    known = {"c": {"recipe": "narrow", "cause": ""}, "d": {"recipe": "", "cause": "no recipe"}}
    lines = write_population(tmp_path, tmp_path / "t.csv", known)
    assert [line["status"] for line in lines] == ["far", "does not run", "no row yet", "does not run"]
    assert tuple(read_population(tmp_path / "t.csv")[0]) == POPULATION
    (tmp_path / "a.json").unlink()
    assert write_population(tmp_path, tmp_path / "t.csv", known)[0]["status"] == "far", "a row was lost"
    page = render(read_population(tmp_path / "t.csv"))
    assert "| a | 1 layer_norm | 1 rms_norm | 1 | 1 | 0 |  | " in page
    assert "3.00 of 1.60" in page
    assert "| `a` | far | bfloat16: output |" in page


def test_the_page_is_that_of_the_table() -> None:
    page = Path("docs/population.md").read_text(encoding="utf-8")
    assert page == render(read_population(Path("bench/results/population.csv")))
