"""The sweep of compiled models: what is near, whose failure it is, and one row for each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import normfuse.backends.compile as compiling
from bench.corpus.compiling import by_compile
from bench.corpus.distance import Judgement, judgement, relative
from bench.corpus.running import is_settled, same_bits, sentence, tensors_of
from bench.corpus.table import SWEPT, counts, write_swept
from normfuse.folding import Slots

X = {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}


class Block(torch.nn.Module):
    """A norm that converts, and a place for what a test puts in."""

    def __init__(self, inside: Callable[[torch.Tensor], torch.Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.inside(self.norm(self.first(x))))
        return result


def _swept(model: torch.nn.Module) -> dict[str, Any]:
    return by_compile(model.eval(), X, lambda _: None)


def _fail(*_: Any, **__: Any) -> Any:
    raise ArithmeticError("no\nmore")


def test_a_model_that_converts() -> None:
    row = _swept(Block())
    assert (row["status"], row["converted"], row["after"]) == ("ok", 1, {"rms_norm": 1})
    assert row["distance"] <= row["tolerance"] < 1e-5


def test_a_wrong_result_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = Slots.tensors
    monkeypatch.setattr(
        Slots, "tensors", lambda s, i: [t + 1e-3 * torch.randn_like(t) for t in tensors(s, i)]
    )
    assert _swept(Block())["status"] == "far"


def test_a_fallback_that_a_user_would_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "rewrite_graph", _fail)
    with pytest.warns(UserWarning, match="left this graph"):
        row = _swept(Block())
    assert row["status"] == "strict fallback"
    assert row["cause"].endswith("ArithmeticError: no")


def test_an_error_that_a_user_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "record", _fail)
    assert _swept(Block())["status"] == "crash in normfuse"


class Traced(Block):
    """Another model while Dynamo looks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x)
        return result + 1 if torch.compiler.is_compiling() else result


def test_what_dynamo_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _swept(Traced())["status"] == "dynamo differs"
    monkeypatch.setattr(compiling, "record", _fail)
    monkeypatch.setattr("bench.corpus.compiling._through_dynamo", _fail)
    assert _swept(Block())["status"] == "dynamo fails"


def test_a_model_that_is_not_settled() -> None:
    count = iter(range(9))
    assert not is_settled(Block(lambda x: x + next(count)), X)
    assert is_settled(Block(torch.nn.functional.dropout), X)


def test_distances() -> None:
    one = torch.ones(2)
    assert relative(one, one * 3) == 2
    assert relative(one, one / torch.tensor([0.0, 1.0])) == float("inf")
    assert relative(one * 0, one * 0) == 0
    assert Judgement(float("inf"), 1.0).excess == Judgement(1.0, 0.0).excess == float("inf")
    nan = one * float("nan")
    assert same_bits([nan], [nan])
    assert not same_bits([one], [one.double()])


def test_the_tolerance_is_a_few_roundings() -> None:
    model = Block().eval()
    wanted = tensors_of(model, X)
    found = judgement(model, X, wanted, wanted)
    assert 1e-8 < found.tolerance < 1e-5
    assert found.is_near
    wide = judgement(model.double(), {"x": X["x"].double()}, w := [t.double() for t in wanted], w)
    assert wide.tolerance < 1e-6


def test_the_table_leaves_nothing_out(tmp_path: Path) -> None:
    good = {"status": "ok", "found": {"layer_norm": 2}, "converted": 2, "distance": 1e-7}
    (tmp_path / "a.json").write_text(json.dumps({"architecture": "a", "recipe": "narrow", "compile": good}))
    (tmp_path / "b.json").write_text(json.dumps({"architecture": "b", "reason": "no recipe"}))
    lines = write_swept(tmp_path, tmp_path / "t.csv")
    assert counts(lines).split() == ["1", "ok", "1", "model", "does", "not", "run"]
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [r["cause"] for r in rows] == ["", "no recipe"]
    assert rows[0]["found"] == "2 layer_norm"
    assert tuple(rows[0]) == SWEPT


def test_a_cause_does_not_say_where_things_lie() -> None:
    said = sentence(
        ValueError("no Net in '/home/someone/lib/net.py', see https://a.org/b/c; (u0 + 1)//5 > 0")
    )
    assert said == "ValueError: no Net in '...', see https://a.org/b/c; (u0 + 1)//5 > 0"
