"""The comparison in training: runs are repeatable, kept, and become a page."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from typer.testing import CliRunner

import normfuse
from bench.train_norms import main
from bench.training.page import write_page
from bench.training.run import NORMS, train
from bench.training.tasks import TASKS, CharacterModel
from normfuse.errors import InputError


def call(*arguments):
    import typer

    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize(("task", "norm"), [("digits", "unified_norm"), ("text", "layer_norm")])
def test_a_run_can_be_repeated_and_its_figures_are_finite(task, norm):
    pytest.importorskip("sklearn")
    first, again = (train(TASKS[task](), norm, 1, 6) for _ in range(2))
    assert first["losses"] == again["losses"]
    assert len(first["losses"]) == 6
    assert not first["diverged"]
    assert [one["step"] for one in first["evaluations"]] == [1, 2, 3, 4, 5, 6]
    assert first["evaluations"][-1] == again["evaluations"][-1]
    norms = 9 if task == "digits" else 7
    assert len(first["fluctuation"]) == len(first["outliers"]) == norms
    assert all(value > 0 for value in first["fluctuation"].values())
    assert all(value > 1 for value in first["outliers"].values())
    assert len(first["movements"]) == 5
    assert sum(first["movements"]) / 5 == pytest.approx(sum(first["fluctuation"].values()) / norms, abs=1e-6)


def test_all_norms_start_from_the_same_weights_and_draw_the_same_batches():
    torch.manual_seed(0)
    plain = CharacterModel(9)
    drawn = torch.rand(3)
    for norm in NORMS[1:]:
        torch.manual_seed(0)
        model = CharacterModel(9)
        normfuse.convert(model, norm)
        assert torch.equal(torch.rand(3), drawn)
        for name, parameter in plain.named_parameters():
            if "norm" not in name:
                assert torch.equal(model.get_parameter(name), parameter)


def test_finished_runs_are_kept_and_written_to_a_page(tmp_path):
    pytest.importorskip("sklearn")
    results, page = tmp_path / "runs", tmp_path / "page.md"
    some = ("--results", results, "--task", "digits", "--norm", "batch_norm", "--seeds", 1, "--steps", 20)
    assert call(*some).exit_code == 0
    (file,) = results.iterdir()
    stamp = file.stat().st_mtime_ns
    assert call(*some).exit_code == 0
    assert file.stat().st_mtime_ns == stamp
    run = json.loads(file.read_text())
    diverged = {**run, "seed": 1, "diverged": True}
    (results / "digits-batch_norm-1.json").write_text(json.dumps(diverged))
    assert call("--results", results, "--page", "--target", page).exit_code == 0
    text = page.read_text()
    assert "| batch_norm | 2, 1 diverged |" in text
    assert f"{run['evaluations'][-1]['loss']:.3f}" in text
    for ending in ("", "-fluctuation", "-outliers"):
        assert f"(page-digits{ending}.svg)" in text
        picture = ET.fromstring((tmp_path / f"page-digits{ending}.svg").read_text())
        (line,) = picture.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(line.get("points").split()) == (1 if ending == "" else 9)


def test_the_page_says_where_losses_lie_and_draws_what_runs_hold(tmp_path):
    def run(norm, seed, loss):
        return {
            "task": "some", "norm": norm, "seed": seed, "steps": 40, "losses": [loss] * 40,
            "movements": [0.5] * 39, "evaluations": [{"loss": loss, "accuracy": 0.5}], "diverged": False,
            "fluctuation": {"a": 0.5, "b": 0.7}, "outliers": {"a": 3.0, "b": 4.0}, "skipped_batches": 0,
            "parameters": 1, "seconds": 1.0, "torch": "2", "python": "3",
        }  # fmt: skip

    losses = {
        "layer_norm": (1.0, 2.0),
        "batch_norm": (2.5, 3.0),
        "power_norm": (1.9, 5.0),
        "unified_norm": (0.5, 0.9),
    }
    for norm, some in losses.items():
        for seed, loss in enumerate(some):
            (tmp_path / f"{norm}-{seed}.json").write_text(json.dumps(run(norm, seed, loss)))
    page, *pictures = write_page(tmp_path, tmp_path / "page.md")
    said = page.read_text()
    assert "beside those of layer_norm: batch_norm higher with every seed, power_norm within" in said
    assert "within the range of the seeds, unified_norm lower with every seed." in said
    assert [one.stem for one in pictures] == [
        f"page-some{ending}" for ending in ("", "-steps", "-fluctuation", "-outliers")
    ]


def test_the_stored_page_is_that_of_the_stored_runs(tmp_path):
    root = Path(__file__).resolve().parents[2]
    for written in write_page(root / "bench/results/training", tmp_path / "comparison.md"):
        assert written.read_text() == (root / "docs/layers" / written.name).read_text()


def test_what_is_missing_or_misspelled_is_said(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        write_page(tmp_path, tmp_path / "page.md")
    assert call("--norm", "group_norm").exit_code == 2
