"""Records of what the pipeline does: equal for equal runs, and differences named by reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests import replay
from tests.fuzz import campaign


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    corpus, table = tmp_path / "corpus", list(replay.table_cases())
    corpus.mkdir()
    for path in sorted(campaign.CORPUS.glob("*.json"))[:4]:
        (corpus / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(campaign, "CORPUS", corpus)
    monkeypatch.setattr(replay, "table_cases", lambda: table[300:340])
    monkeypatch.setattr(replay, "model_cases", lambda: ())


def made(path: Path, **settings: object) -> Path:
    replay.record(path, 4, **{"skip": [], **settings})  # type: ignore[arg-type]
    return path


@pytest.mark.usefixtures("few")
def test_a_run_is_as_the_one_before_and_what_differs_is_named(tmp_path: Path) -> None:
    first = made(tmp_path / "first")
    lines = [json.loads(line) for line in first.read_text("utf-8").splitlines()]
    assert {line["name"].split()[0] for line in lines} == {"corpus", "fuzz", "table"}
    assert not any("error" in line for line in lines)
    second = made(tmp_path / "second", like=first)
    assert replay.compare(first, second) == {}
    assert replay.main(["compare", str(first), str(second)]) == 0
    groups = replay.compare(first, made(tmp_path / "third", skip=["recentre"], like=first))
    assert any("layer_norm converted recentre" in reason and "not_asked" in reason for reason in groups)


CHANGES = {
    "the same operators in another order": {"graph": "other"},
    "other recipes of equal weights": {"structure": "other", "recipes": ["other"]},
    "other operators": {"structure": "other"},
    "folded weights have other values": {"structure": "other", "values": ["other"]},
    "centrings: 0 => 1": {"centrings": 1},
    "error: None => oh": {"error": "oh"},
    "norms: layer_norm kept layer_norm raw_reader => layer_norm converted recentre rms_norm": {
        "sites": [
            {"kind": "layer_norm", "becomes": "rms_norm", "action": "converted", "rules": ["recentre"],
             "refusal": ""}
        ]
    },
}  # fmt: skip
ONE = {
    "graph": "g", "structure": "s", "recipes": ["r"], "values": ["v"], "centrings": 0,
    "sites": [
        {"kind": "layer_norm", "becomes": "layer_norm", "action": "kept", "rules": [],
         "refusal": "raw_reader"}
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", CHANGES)
def test_a_difference_has_one_reason(reason: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(json.dumps({"name": "one", **ONE}) + "\n", encoding="utf-8")
    new.write_text(json.dumps({"name": "one", **copy.deepcopy(ONE), **CHANGES[reason]}) + "\n", "utf-8")
    assert replay.compare(old, new) == {reason: ["one"]}
    assert replay.compare(old, old) == {}
    new.write_text("", "utf-8")
    assert replay.compare(old, new) == {"only in the old record": ["one"]}
