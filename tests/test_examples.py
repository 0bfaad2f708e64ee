"""The examples do what they say, here with eager in the place of Inductor."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_rewrite_program(tmp_path, capsys):
    assert run("rewrite_program")(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2", "model_rms.map.json", "model_rms.pt2"]
    assert "found 5 layer_norm; now 5 rms_norm" in capsys.readouterr().out


@pytest.mark.models
@pytest.mark.parametrize("name", ["compile_image_model", "compile_language_model"])
def test_compile(name, capsys):
    pytest.importorskip("transformers")
    assert run(name)(**{"normfuse.inner": "eager"})
    assert "rms_norm" in capsys.readouterr().out


def test_train_and_fold(capsys):
    pytest.importorskip("sklearn")
    assert run("train_and_fold")(epochs=2)
    assert "found 3 batch_norm, 2 weight_standardization; now no norms" in capsys.readouterr().out


def test_every_example_is_run():
    tested = {"rewrite_program", "train_and_fold", "compile_image_model", "compile_language_model"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
