"""``normfuse.rewrite`` of a folder: its model, loaded whole, becomes a program for any batch and length."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

import normfuse
from normfuse.cli.app import app
from tests.checkpoint.folders import inputs, model, outputs, saved

pytestmark = pytest.mark.models


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_a_folder_becomes_a_program(name, tmp_path) -> None:
    folder = saved(tmp_path / "in", name, torch.float64)
    made = normfuse.rewrite(folder)
    assert set(made.report.after) == {"rms_norm"}
    given = inputs(name, torch.float64)
    taken = made.program.example_inputs[1]
    found = made.module()(**{n: given.get(n, value) for n, value in taken.items()})
    assert distance(found[0], outputs(model(name, torch.float64), name, torch.float64)) <= 1e-11


def test_a_rewritten_folder_is_one_too(tmp_path) -> None:
    """With inputs of one's own, whose sizes it then has."""
    normfuse.rewrite_folder(saved(tmp_path / "in", "gpt2", torch.float64), tmp_path / "out")
    given = inputs("gpt2")
    made = normfuse.rewrite(str(tmp_path / "out"), kwargs=given)
    assert set(made.report.found) == {"rms_norm"}
    wanted = outputs(model("gpt2", torch.float64), "gpt2", torch.float64)
    assert distance(made.module()(**given, use_cache=False)[0], wanted) <= 1e-11


@pytest.mark.slow
def test_a_folder_becomes_a_file_by_the_command(tmp_path) -> None:
    """Where one is named, and no folder of that name."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = saved(tmp_path / "in", "gpt2")
    result = CliRunner().invoke(app, ["rewrite", str(folder), "-o", str(tmp_path / "out.onnx"), "--dynamic"])
    assert result.exit_code == 0, result.output
    assert "out.onnx with 5 RMSNormalization; it ran in ONNX Runtime" in result.output
    assert (tmp_path / "out.onnx").is_file()


def test_a_folder_becomes_a_program_that_is_verified_against_it(tmp_path) -> None:
    folder, made = saved(tmp_path / "in", "gpt2"), tmp_path / "out.pt2"
    words = ["rewrite", str(folder), "-o", str(made), "--verify", "off", "--quiet"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert made.is_file()
    normfuse.rewrite_folder(folder, tmp_path / "out")
    for one in (made, tmp_path / "out"):
        result = CliRunner().invoke(app, ["verify", str(folder), str(one), "--random", "1"])
        assert result.exit_code == 0, result.output
        assert "equivalent: worst error ratio" in result.output


def test_other_folders_are_refused(tmp_path) -> None:
    with pytest.raises(normfuse.InputError, match=r"config\.json"):
        normfuse.rewrite(tmp_path)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach() - wanted).norm() / wanted.norm())
