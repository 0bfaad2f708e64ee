"""The demo command: its exit status, its errors, what it prints and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from typer.testing import CliRunner

import normfuse
from normfuse.cli import comparison, demo, digits
from normfuse.cli.app import app
from normfuse.report import Report

# Importing it takes a second, which every process of tests would pay for the one that runs this file.
pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="the demo needs scikit-learn")


def make_tiny(patch):
    """The quick demo with eager in the place of both compilers, and a clock that allows three steps."""

    def compile_with(model, backend):
        return torch.compile(model, backend="eager")

    scale = demo.Scale.quick()
    brief = demo.Schedule(seconds=0.0, min_rounds=6, max_rounds=6, warm_up=1, sample=0.0)
    shrunk = demo.Scale(3.0, scale.layers, scale.width, scale.decoder, brief, brief)
    ticks = iter(range(100))
    train = digits.train
    patch.setattr(demo, "train", lambda *args: train(*args, clock=lambda: next(ticks)))
    patch.setattr(demo.Scale, "quick", classmethod(lambda cls: shrunk))
    patch.setattr(comparison, "compile_with", compile_with)
    patch.setattr(normfuse, "last_report", Report, raising=False)
    return patch


@pytest.fixture
def tiny(monkeypatch):
    return make_tiny(monkeypatch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run to its end: its result, what it wrote, and the number of threads before and after it."""
    path, before = tmp_path_factory.mktemp("demo") / "out.json", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        result = run("--quick", "--debug", "--json", str(path))
    return result, path, (before, torch.get_num_threads())


def run(*options):
    return CliRunner().invoke(app, ["demo", *options])


def test_equal_answers_exit_with_0_and_are_written_as_json(done):
    result, path, _ = done
    assert result.exit_code == 0, result.output
    assert "differing predictions: 0 of 360" in result.output
    assert "inductor again (noise floor)" in result.output
    written = json.loads(path.read_text())
    assert written["agreed"] is True
    assert written["digits"]["steps"] == 2
    for part in ("digits", "decoder"):
        assert set(written[part]["verification"]) == {"inductor", "normfuse"}
        assert set(written[part]["latency_over_inductor"]) == {"eager", "normfuse", "inductor (again)"}


def test_a_compiler_that_changes_the_answer_exits_with_1(tiny):
    def compile_with(model, backend):
        if backend == "inductor" or not isinstance(model, digits.DigitTransformer):
            return torch.compile(model, backend="eager")
        return lambda images: model(images).roll(1, dims=-1)

    tiny.setattr(comparison, "compile_with", compile_with)
    result = run("--quick", "--debug")
    assert result.exit_code == 1
    assert "NOT equivalent" in result.output
    assert "the answers DIFFER" in result.output


def test_missing_scikit_learn_is_one_sentence(tiny):
    tiny.setitem(sys.modules, "sklearn", None)
    result = run("--quick")
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines() == [
        "normfuse: the demo needs scikit-learn for its digits: pip install 'normfuse[models]'"
    ]


def test_errors_are_one_line_unless_debugged(tiny):
    def compile_with(model, backend):
        raise RuntimeError("first line\nsecond line")

    tiny.setattr(comparison, "compile_with", compile_with)
    result = run("--quick")
    assert result.exit_code == 1
    assert result.stderr == "normfuse: RuntimeError: first line (--debug shows where)\n"
    with pytest.raises(RuntimeError, match="second line"):
        CliRunner().invoke(app, ["demo", "--quick", "--debug"], catch_exceptions=False)


def test_the_number_of_threads_is_given_back(done):
    result, _, (before, after) = done
    assert result.exit_code == 0
    assert after == before


@pytest.mark.parametrize("arguments", [[], ["demo"], ["bench"], ["rewrite"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from normfuse.cli.app import app\n"
        f"app({[*arguments, '--help']!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (arguments or ["demo"])[0] in done.stdout


@pytest.mark.slow
def test_the_quick_demo_as_it_is(tmp_path):
    command = [
        sys.executable,
        "-m",
        "normfuse.cli.app",
        "demo",
        "--quick",
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    for part in ("digits", "decoder"):
        assert written[part]["report"]["found"] == {"layer_norm": 5}
        assert written[part]["report"]["after"] == {"rms_norm": 5}


def test_a_missing_folder_is_found_before_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_demo", lambda **options: pytest.fail("the demo ran"))
    folder = tmp_path / "none"
    result = run("--json", str(folder / "out.json"))
    assert result.exit_code == 2
    assert result.stderr == f"normfuse: cannot write {folder}/out.json: the folder {folder} does not exist\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "normfuse", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("explain", "rewrite", "fold", "verify", "bench", "demo"):
        assert command in done.stdout
