"""The corpus' own parts: its truth sees norms, its judge sees wrong descriptions, its table keeps both."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

from bench.corpus.__main__ import _is_done
from bench.corpus.formula import describes
from bench.corpus.judging import judge
from bench.corpus.table import COLUMNS, summary, write
from bench.corpus.truth import called_norms, native_norms, roots
from normfuse.ir import norms_in
from normfuse.ir.region import NormRegion
from tests.patterns import dropped_coordinates, spellings
from tests.patterns.capturing import lifted, program_of
from tests.patterns.test_recognition import operands

SPELLINGS = {
    **spellings.RMS_SPELLINGS,
    **spellings.LAYER_SPELLINGS,
    **{f"crms, {name}": function for name, function in dropped_coordinates.SPELLINGS.items()},
}


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_the_truth_sees_every_spelling(name: str) -> None:
    graph = program_of(SPELLINGS[name], operands(torch.float32), 2).gm.graph
    assert native_norms(graph) or roots(graph)


@pytest.mark.parametrize("name", ["scale only", "statistics pooling", "top-k gate"])
def test_the_truth_sees_nothing_else(name: str) -> None:
    graph = program_of(spellings.NEAR_MISSES[name], operands(torch.float32), 2).gm.graph
    assert native_norms(graph) + roots(graph) == []


def test_a_miss_is_named() -> None:
    score, _ = judge(program_of(spellings.NEAR_MISSES["pocket_tts"], operands(torch.float32), 2))
    assert (score.present, score.lifted) == (1, 0)
    assert score.missed[0].startswith("rsqrt in the model")


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 0.5},
        {"divisor": 1},
        {"kind": "layer_norm"},
        {"post_factor": 2.0},
        {"dims": (-2,)},
        {"basis": "drop_last"},
    ],
)
def test_a_wrong_description_is_seen(change: dict[str, object]) -> None:
    ((node, region),) = norms_in(lifted(spellings.llama, operands(torch.float32)).program.gm)
    fakes = [argument.meta["val"] for argument in node.args]
    assert describes(region, fakes)
    assert not describes(NormRegion(replace(region.spec, **change), region.body, ""), fakes)


def test_modules_are_counted_by_their_calls() -> None:
    norm = torch.nn.LayerNorm(4)
    model = torch.nn.Sequential(norm, torch.nn.Linear(4, 4), norm)
    with called_norms(model) as calls:
        model(torch.randn(2, 4))
    assert calls == {("0", "LayerNorm"): 2}
    model(torch.randn(2, 4))
    assert calls == {("0", "LayerNorm"): 2}


SCORE = {
    "present": 5, "lifted": 3, "refused": {}, "kinds": {"rms_norm": 3}, "wrong": [], "bitwise": True,
    "missed": ["rsqrt in a (b.py:1)", "linalg_vector_norm in layers.q_l2_clip (modeling_inkling2.py:1)"],
}  # fmt: skip


def test_the_table(tmp_path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "b.json").write_text(
        json.dumps({"architecture": "inkling2", "recipe": "narrow", "export": SCORE})
    )
    (rows / "a.json").write_text(json.dumps({"architecture": "a", "reason": "no recipe runs"}))
    lines = write(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert [r["route"] for r in read] == ["none", "export"]
    assert (read[1]["present"], read[1]["missed"]) == ("4", "1 rsqrt in a (b.py:1)")
    assert read[1]["no_norms"].startswith("1 linalg_vector_norm")
    assert "export: 1 captured, 4 norms, 3 lifted (75.00%)" in summary(lines)


def test_the_command_goes_on_where_it_stopped(tmp_path) -> None:
    target = tmp_path / "a.json"
    assert not _is_done(target, ["export"], again=False)
    target.write_text(json.dumps({"architecture": "a", "export": {}}))
    assert _is_done(target, ["export"], again=False)
    assert not _is_done(target, ["export", "dynamo"], again=False)
    target.write_text(json.dumps({"architecture": "a", "reason": "too slow"}))
    assert _is_done(target, ["export"], again=False)
    assert not _is_done(target, ["export"], again=True)
