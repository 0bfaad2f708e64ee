"""The suite stores what it measures with the command that makes it, and the page says what the files say."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from bench import suite
from bench.page import render, write_page
from bench.subjects import SUBJECTS
from normfuse.benchmark import run
from normfuse.benchmark.result import BatchResult, BenchResult
from normfuse.benchmark.settings import Settings
from normfuse.benchmark.timing import AGAIN, Rounds
from normfuse.cli.app import app


def rounds(ours):
    times = {"eager": 2.0, "inductor": 1.0, "normfuse": ours, "norms deleted": 0.5, "inductor" + AGAIN: 1.0}
    return Rounds("inductor", {name: [price] * 3 for name, price in times.items()})


def stored(name, ours):
    batch = BatchResult.of(4, [rounds(ours)] * 3, {})
    machine = {"processor": "P", "cores": 2, "system": "S", "python": "3", "packages": {"torch": "2"}}
    settings = Settings(f"bench.subjects:{name}")
    return BenchResult(settings, 3, machine, (batch,), f"normfuse bench {name}").to_dict()


def test_the_page_sorts_models_by_verdict_and_marks_those_below_98_percent():
    page = render([stored("won", 0.9), stored("tied", 1.0), stored("lost", 1.1), stored("near", 1.01)])
    faster, rest = page.split("### No difference")
    tie, slower = rest.split("### Slower")
    assert "| won | 4 | 0.900 (0.900 .. 0.900) |" in faster
    assert "| tied | 4 |" in tie
    assert "No figures are stored yet for gpt2_prefill, gpt2_decode" in slower
    assert "| lost (!) | 4 |" in slower
    assert "| near | 4 |" in slower
    assert page.count("P, 2 cores") == 1
    assert "    normfuse bench lost\n" in page


def test_the_page_names_what_is_unusual(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "run_child", lambda settings, *names, **more: rounds(0.9).to_json())
    monkeypatch.setattr(run, "Subject", Mock())
    options = {
        "processes": 1,
        "seconds": 0.5,
        "cost_runs": 0,
        "rivals": ("eager", "normfuse", "norms deleted"),
    }
    suite.measure("bert", tmp_path, training=False, dtype="bfloat16", threads=2, **options)
    suite.measure("swin", tmp_path, training=True, **options)
    text = write_page(tmp_path, tmp_path / "page.md").read_text()
    assert "| bert, bfloat16, 2 threads |" in text
    assert "| swin, training |" in text
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "bert-bfloat16-2-threads.json", "swin-training.json",
    }  # fmt: skip
    missing = text.split("No figures are stored yet for ")[1].split(";")[0].split(", ")
    assert "bert" not in missing
    assert "llama_decode" in missing


def test_without_figures_the_page_says_how_to_make_them(tmp_path):
    text = write_page(tmp_path, tmp_path / "page.md").read_text()
    assert "No figures are stored yet" in text


@pytest.mark.parametrize("sizes", [None, (3,)])
def test_the_suite_stores_a_command_that_is_understood(monkeypatch, tmp_path, sizes):
    monkeypatch.setattr(run, "run_child", lambda settings, *names, **more: (
        '{"first_call": 1.0, "peak_bytes": null}' if names else rounds(0.9).to_json()))  # fmt: skip
    monkeypatch.setattr(run, "Subject", Mock())
    options = {"processes": 2, "seconds": 0.5, "cost_runs": 1, "device": "cpu"}
    suite.measure("vit_small", tmp_path, training=True, sizes=sizes, **options)
    written = json.loads((tmp_path / "vit_small-training.json").read_text())
    assert [b["batch_size"] for b in written["batches"]] == list(sizes or SUBJECTS["vit_small"])
    _, command, *arguments = written["command"].split()
    assert command == "bench"
    found = CliRunner().invoke(app, ["bench", *arguments, "--json", str(tmp_path / "again.json")])
    assert found.exit_code == 0, found.output
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["settings"] == written["settings"]


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_subject_runs(name):
    import torch

    from bench import subjects

    model, args, kwargs = getattr(subjects, name)(1)
    with torch.no_grad():
        assert model(*args, **kwargs) is not None


def test_networks_of_batch_norms_are_compared_with_freezing(monkeypatch, tmp_path):
    held = []

    def child(settings, *names, **more):
        held.append(settings.contenders)
        times = {name: [1.0] * 3 for name in (*settings.contenders, "inductor" + AGAIN)}
        times |= {"inductor, frozen": [0.75] * 3} if "inductor, frozen" in times else {}
        return Rounds("inductor", times).to_json()

    monkeypatch.setattr(run, "run_child", child)
    monkeypatch.setattr(run, "Subject", Mock())
    for training in (False, True):
        suite.measure("resnet18", tmp_path, processes=1, seconds=0.5, cost_runs=0, training=training)
        file = "resnet18-training.json" if training else "resnet18.json"
        written = json.loads((tmp_path / file).read_text())
        assert ("inductor, frozen" in held[-1]) is not training
        assert ("--contender 'inductor, frozen'" in written["command"]) is not training
        assert ("| 0.750 (0.750 .. 0.750) |" in render([written])) is not training
