"""The commands explain, rewrite, fold and verify: what they write, how they end, and bad input."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import normfuse
from normfuse import progress
from normfuse.benchmark.settings import CONTENDERS
from normfuse.cli import options as choices
from normfuse.cli.app import app
from normfuse.cli.commands.bench import Contender
from normfuse.option_checks import _CHOICES
from normfuse.passes.place import Placement
from normfuse.pt2 import load_program, save_program
from normfuse.rule_names import RULE_NAMES
from normfuse.sources import _DTYPES
from tests.backends.networks import prenorm
from tests.cli import forked
from tests.page.structure import checked
from tests.programs.models import small_program

MODELS = "tests.programs.models"


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "in.pt2"
    return save_program(small_program(), path)


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_rewrite_writes_program_map_and_report(original, tmp_path):
    before = original.read_bytes()
    result = run("rewrite", original, "-o", tmp_path / "out.pt2", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "found 3 layer_norm; now 3 rms_norm" in result.output
    assert left_in(tmp_path) == ["out.map.json", "out.pt2", "r.json"]
    assert original.read_bytes() == before
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["after"] == {"rms_norm": 3}
    verification = written["verification"]
    assert (verification["level"], verification["ok"]) == ("sites", True)
    assert {"captured", "large mean"} <= set(verification["inputs"])
    assert 0 < verification["error_ratio"] < 3.5
    assert f"verified norm by norm, on {len(verification['inputs'])} sets of inputs" in result.output
    verified = run("verify", original, tmp_path / "out.pt2", "--random", 2, "--no-hostile")
    assert verified.exit_code == 0, verified.output
    assert "equivalent: worst error ratio" in verified.output


def test_the_map_of_a_program_that_is_written_over_is_set_aside(original, tmp_path):
    out = tmp_path / "out.pt2"
    assert run("rewrite", original, "-o", out, "--verify", "off").exit_code == 0
    old = (tmp_path / "out.map.json").read_bytes()
    with patch("normfuse.rewriting.weight_map", side_effect=normfuse.InputError("an operator of its own")):
        for number in (1, 2):
            result = run("rewrite", original, "-o", out, "--verify", "off")
            assert result.exit_code == 0, result.output
            assert f"of another program, and is {tmp_path / 'out.map.json'}.old{number} now" in result.output
            (tmp_path / "out.map.json").write_bytes(b"another")
    assert (tmp_path / "out.map.json.old1").read_bytes() == old


@pytest.mark.parametrize(
    ("level", "message", "recorded"),
    [
        ("sites", "verified norm by norm", {"level": "sites", "ok": True}),
        ("output", "verified on the example inputs", {"level": "output", "ok": True}),
        ("off", "NOT verified", None),
    ],
)
def test_levels_of_verification(level, message, recorded, original, tmp_path):
    options = ["--verify", level, "--json", tmp_path / "r.json"]
    result = run("rewrite", original, "-o", tmp_path / "out.pt2", *options)
    assert result.exit_code == 0, result.output
    assert message in result.output
    found = json.loads((tmp_path / "r.json").read_text())["verification"]
    assert found is None if recorded is None else recorded.items() <= found.items()


def test_a_site_over_budget_stays_and_the_program_is_written(original, tmp_path):
    with patch.object(Placement, "fold", lambda self, leaf, before: leaf.node):
        found = run("rewrite", original, "-o", tmp_path / "out.pt2", "--verify", "sites")
    assert found.exit_code == 0, found.output
    assert "over_budget" in found.output
    assert "no norm was changed" in found.output


def test_without_example_inputs_the_default_says_so_and_the_wish_is_refused(tmp_path):
    program = small_program()
    program.example_inputs = None
    save_program(program, tmp_path / "in.pt2")
    for level in ("sites", "output"):
        refused = run("rewrite", tmp_path / "in.pt2", "-o", tmp_path / "out.pt2", "--verify", level)
        assert refused.exit_code == 2
        assert f"--verify {level} needs example inputs, and {tmp_path}/in.pt2 holds none" in refused.stderr
    assert left_in(tmp_path) == ["in.pt2"]
    found = run("rewrite", tmp_path / "in.pt2", "-o", tmp_path / "out.pt2")
    assert found.exit_code == 0
    assert "note: not verified: the exported program holds no example inputs" in found.output
    assert "NOT verified" in found.output


def test_a_program_without_an_oracle_is_written_unverified_unless_sites_are_asked_for(original, tmp_path):
    def refuse(*anything):
        raise normfuse.VerificationError("there is no float64 for this")

    with patch("normfuse.verify.original.widen", refuse):
        asked = run("rewrite", original, "-o", tmp_path / "out.pt2", "--verify", "sites")
        assert asked.exit_code == 1
        assert "there is no float64 for this; --verify off writes the program unverified" in asked.stderr
        assert left_in(tmp_path) == []
        unasked = run("rewrite", original, "-o", tmp_path / "out.pt2")
    assert unasked.exit_code == 0
    assert "NOT verified" in unasked.output


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_rewrite_of_python_code(dtype, tmp_path):
    options = ["--dynamic", "--dtype", dtype, "--expect", "rms_norm=3", "--quiet"]
    result = run("rewrite", f"{MODELS}:factory", "-o", tmp_path / "out.pt2", *options)
    assert (result.exit_code, result.output) == (0, "")
    program = load_program(tmp_path / "out.pt2")
    assert {t.dtype for t in program.state_dict.values()} == {getattr(torch, dtype)}
    assert program.range_constraints


def test_a_factory_may_return_one_tensor(tmp_path):
    assert run("rewrite", f"{MODELS}:lone_tensor", "-o", tmp_path / "out.pt2").exit_code == 0


def test_skipped_rules_and_other_targets_change_nothing(original, tmp_path):
    for options in (["--skip", "recentre"], ["--target", "layer_norm"]):
        result = run("rewrite", original, "-o", tmp_path / "out.pt2", "--verify", "off", *options)
        assert result.exit_code == 0
        assert "now 3 layer_norm" in result.output


@pytest.mark.parametrize("source", ["program", "code"])
def test_explain_writes_nothing_but_what_it_is_asked_for(source, original, tmp_path):
    text = original if source == "program" else f"{MODELS}:factory"
    result = run("explain", text, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert "now 3 rms_norm" in result.output
    assert left_in(tmp_path) == ["r.html", "r.json"]
    assert "now 3 layer_norm" in run("explain", text, "--target", "layer_norm").output


def test_every_command_writes_a_page_of_what_it_found(original, tmp_path):
    out, page = tmp_path / "out.pt2", tmp_path / "page.html"
    assert run("rewrite", original, "-o", out, "--html", page).exit_code == 0
    text = checked(page.read_text(encoding="utf-8")).text
    assert original.name in text
    assert "Verified norm by norm, on" in text
    assert run("verify", original, out, "--random", 0, "--no-hostile", "--html", page).exit_code == 0
    assert "Equivalent: at most" in checked(page.read_text(encoding="utf-8")).text
    assert run("rewrite", original, "-o", out, "--verify", "off", "--html", page).exit_code == 0
    assert "NOT verified" in checked(page.read_text(encoding="utf-8")).text


@pytest.mark.parametrize("source", ["program", "code"])
def test_explain_prints_the_graph_after_each_stage_that_changes_it(source, original):
    text = original if source == "program" else f"{MODELS}:factory"
    shown = run("explain", text, "--stages").output
    headings = [line for line in shown.splitlines() if line.startswith("===")]
    stages = ("capture", "lift", "recentre", "fold_scale", "hoist", "lower")
    assert headings == ["=== inputs", *(f"=== after {name}" for name in stages)]
    assert shown.count("weight  norm.weight: float32[16]\n") == 1
    assert "\nnorm    layer_norm: float32" in shown
    assert "\nfold    sub_1: float32" in shown
    assert "\nfolded  embed.weight': float32[16, 8] = from embed.weight\n" in shown
    assert "now 3 rms_norm" in shown
    assert run("explain", text, "--stages", "--quiet").output == ""


def test_verify_ends_with_1_and_names_the_leaf(original, tmp_path):
    program = load_program(original)
    with torch.no_grad():
        program.state_dict["head.weight"].mul_(1.001)
    save_program(program, tmp_path / "b.pt2")
    options = ["--random", 1, "--no-hostile", "--json", tmp_path / "v.json"]
    result = run("verify", original, tmp_path / "b.pt2", *options)
    assert result.exit_code == 1
    assert "NOT equivalent" in result.output
    assert "stored: output has error ratio" in result.output
    written = json.loads((tmp_path / "v.json").read_text())
    assert written["ok"] is False
    assert written["error_ratio"] > 1.5
    assert [case["kind"] for case in written["cases"]] == ["stored", "random"]


def test_a_float64_program_is_judged_by_its_distance(tmp_path):
    save_program(small_program(torch.float64), tmp_path / "a.pt2")
    result = run("verify", tmp_path / "a.pt2", tmp_path / "a.pt2", "--random", 0, "--no-hostile")
    assert result.exit_code == 0, result.output
    assert "(9.1e-13 allowed)" in result.output
    assert "1.5 is allowed" not in result.output


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_fold_gives_the_weights_of_another_rewrite(suffix, original, tmp_path):
    assert run("rewrite", original, "-o", tmp_path / "out.pt2").exit_code == 0
    other = prenorm(seed=5, dtype=torch.float32)
    given, made = tmp_path / f"given{suffix}", tmp_path / f"made{suffix}"
    if suffix == ".pt":
        torch.save(other.state_dict(), given)
    else:
        save_file(other.state_dict(), given, metadata={"format": "pt"})
    before = given.read_bytes()
    result = run("fold", tmp_path / "out.map.json", given, "-o", made)
    assert result.exit_code == 0, result.output
    assert "12 folded in place, 0 added" in result.output
    assert given.read_bytes() == before
    folded = torch.load(made) if suffix == ".pt" else load_file(made)
    module = load_program(tmp_path / "out.pt2").module()
    module.load_state_dict(folded)
    assert normfuse.verify(other, module, load_program(original).example_inputs[0]).ok


BAD_USE = [
    (["rewrite", "{in}"], "Missing option '--output'"),
    (["rewrite", "none.pt2", "-o", "{out}"], "none.pt2 does not exist"),
    (["rewrite", "neither", "-o", "{out}"], "is neither a .pt2 file that exists nor module.path:factory"),
    (["rewrite", "{junk}", "-o", "{out}"], "is not a .pt2 program, or is truncated"),
    (["rewrite", "{in}", "-o", "{in}"], "is the input; choose another file"),
    (["rewrite", "{in}", "-o", "{dir}/none/x.pt2"], "none does not exist"),
    (["rewrite", "{dir}/none", "-o", "{dir}/x"], "none does not exist"),
    (["rewrite", "{in}", "-o", "{dir}/x.txt"], "has to be a .pt2 or an .onnx file"),
    (["rewrite", "{in}", "-o", "{out}", "--json", "{out}"], "would be written twice"),
    (["rewrite", "{in}", "-o", "{out}", "--json", "{dir}/none/r.json"], "none does not exist"),
    (
        ["rewrite", "{in}", "-o", "{out}", "--target", "rms_nrm"],
        "is not one of 'rms_norm', 'crms_norm', 'layer_norm'",
    ),
    (
        ["rewrite", "{in}", "-o", "{out}", "--only", "recentr"],
        "'fold_constants', 'fold_affine', 'recentre'",
    ),
    (["rewrite", "{in}", "-o", "{out}", "--verify", "maybe"], "'maybe' is not one of 'off'"),
    (
        ["rewrite", "{in}", "-o", "{out}", "--dtype", "float64"],
        "is a program, which no longer says what the model keeps",
    ),
    (["rewrite", "{in}", "-o", "{out}", "--dynamic"], "which of its sizes are open was decided"),
    (["rewrite", "{in}", "-o", "{out}", "--expect", "rms_norm"], "--expect takes KIND=N"),
    (
        ["rewrite", f"{MODELS}:factory", "-o", "{out}", "--dtype", "int8"],
        "'int8' is not one of 'float16'",
    ),
    (["rewrite", f"{MODELS}:nothing", "-o", "{out}"], "has no nothing"),
    (["rewrite", f"{MODELS}:raises", "-o", "{out}"], "raised ValueError: first line"),
    (["rewrite", f"{MODELS}:leaves", "-o", "{out}"], "raised SystemExit: 3"),
    (["rewrite", f"{MODELS}:returns_a_number", "-o", "{out}"], "has to return (model, args)"),
    (["rewrite", f"{MODELS}:not_callable", "-o", "{out}"], "is of type int, not a function"),
    (["rewrite", f"{MODELS}:in_training", "-o", "{out}"], "is in training mode; call .eval()"),
    (
        ["rewrite", f"{MODELS}:named_arguments_that_are_none", "-o", "{out}"],
        "named arguments of type int; a dict is expected",
    ),
    (["rewrite", "no.such.module:f", "-o", "{out}"], "cannot import no.such.module"),
    (["rewrite", "", "-o", "{out}"], "'' is neither a .pt2 file that exists nor module.path:factory"),
    (["rewrite", "../models:f", "-o", "{out}"], "is neither a .pt2 file that exists nor module.path:factory"),
    (["rewrite", "{in}", "-o", "{out}", "--json", os.devnull], "it is a device or a pipe"),
    (["explain", "{in}", "--html", "{dir}/none/r.html"], "none does not exist"),
    (["verify", "{in}"], "Missing argument 'B'"),
    (["explain", "openai-community/gpt2"], "(hf download openai-community/gpt2 --local-dir FOLDER)"),
    (["explain", "gpt2"], "(hf download gpt2 --local-dir FOLDER)"),
    (["explain", "{dir}/gone.onnx"], "gone.onnx does not exist"),
    (["explain", "{dir}"], "is no checkpoint folder: it has no config.json"),
    (["bench", "{in}", "--contender", "tensorrt"], "'tensorrt' is not one of 'eager', 'inductor'"),
    (["verify", "{in}", "{junk}"], "is not a .pt2 program, or is truncated"),
    (["fold", "{map}", "{junk}", "-o", "{out}"], "is not a checkpoint that can be read"),
    (["fold", "{map}", "none.pt", "-o", "{out}"], "none.pt does not exist"),
    (["fold", "{map}", "{other}", "-o", "{out}"], "the map does not fit: the checkpoint holds no tensor"),
    (["fold", "{map}", "{nested}", "-o", "{out}"], "save its entry 'model' alone"),
    (["fold", "{map}", "{cut}", "-o", "{out}"], "is not a checkpoint that can be read"),
    (["fold", "{map}", "{whole}", "-o", "{out}"], "holds more than tensors, which could run code"),
    (["fold", "{map}", "{other}", "-o", "{other}"], "is an input; choose another file"),
    (["fold", "{junk}", "{other}", "-o", "{out}"], "is not a weight map: it is not JSON"),
    (["fold", "none.json", "{other}", "-o", "{out}"], "cannot read none.json"),
    (["frobnicate"], "No such command 'frobnicate'"),
]


def assert_one_error(result, message: str) -> None:
    """One line, behind those that say how far the command came."""
    *said, error = result.stderr.splitlines()
    assert error.startswith("normfuse: ")
    assert message in error
    assert not any(line.startswith("normfuse: ") for line in said)


@pytest.fixture(scope="module")
def files(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    assert run("rewrite", original, "-o", folder / "made.pt2", "--verify", "off").exit_code == 0
    (folder / "junk.pt2").write_bytes(b"junk" * 50)
    torch.save({"another": torch.zeros(2)}, folder / "other.pt")
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:-100])
    torch.save({"model": {"embed.weight": torch.zeros(2)}}, folder / "nested.pt")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_USE, ids=lambda v: "-".join(v)[:60] if isinstance(v, list) else ""
)
def test_bad_use_is_one_line_with_status_2_and_leaves_nothing(arguments, message, original, files, tmp_path):
    names = {
        "in": original, "out": tmp_path / "out.pt2", "dir": tmp_path, "junk": files / "junk.pt2",
        "map": files / "made.map.json", "other": files / "other.pt", "nested": files / "nested.pt",
        "whole": files / "whole.pt", "cut": files / "cut.pt",
    }  # fmt: skip
    before = original.read_bytes(), (files / "other.pt").read_bytes()
    result = run(*(a.format(**names) if "{" in a else a for a in arguments))
    assert result.exit_code == 2, result.output
    assert_one_error(result, message)
    assert left_in(tmp_path) == []
    assert (original.read_bytes(), (files / "other.pt").read_bytes()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rewrite", "{in}", "-o", "{out}", "--expect", "rms_norm=4"], "expected 4 rms_norm"),
        (["verify", "{in}", f"{MODELS}:other_signature"], "they are not versions of one program"),
        (
            ["rewrite", f"{MODELS}:branching", "-o", "{out}"],
            "_Branching cannot be exported with these inputs",
        ),
        (["rewrite", f"{MODELS}:other_inputs_than_it_takes", "-o", "{out}"], "cannot be exported with these"),
        (["explain", f"{MODELS}:other_inputs_than_it_takes"], "the model cannot run with these inputs"),
    ],
)
def test_refusals_are_one_line_with_status_1_and_leave_nothing(arguments, message, original, tmp_path):
    names = {"in": original, "out": tmp_path / "out.pt2"}
    result = run(*(a.format(**names) if "{" in a else a for a in arguments))
    assert result.exit_code == 1, result.output
    assert_one_error(result, message)
    assert left_in(tmp_path) == []


def test_debug_raises(original, tmp_path):
    with pytest.raises(normfuse.OptionError):
        CliRunner().invoke(
            app,
            ["rewrite", str(original), "-o", str(tmp_path / "o.pt2"), "--expect", "x=1", "--debug"],
            catch_exceptions=False,
        )


def test_a_full_disk_leaves_nothing(original, tmp_path, tmp_path_factory):
    """A limit on the size of files stands for a disk that is full."""
    assert original.stat().st_size > 20_000
    words = ["rewrite", str(original), "-o", str(tmp_path / "o.pt2")]
    status, errors = forked.command(
        words,
        tmp_path_factory.mktemp("errors"),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert status == 2, errors
    assert errors.splitlines()[-1].startswith("normfuse: cannot write"), errors
    assert left_in(tmp_path) == []


def test_progress_is_lines_without_a_terminal(capsys):
    """The first waits for the second: an error right at the start stands alone."""
    with progress.steps(quiet=False) as say:
        say("loading [x]")
        assert capsys.readouterr() == ("", "")
        say("rewriting")
        say("writing")
    assert capsys.readouterr() == ("", "loading [x]\nrewriting\nwriting\n")
    with progress.steps(quiet=False, total=2) as say:
        say("one")
        say("two")
    assert capsys.readouterr() == ("", "[1/2] one\n[2/2] two\n")
    with progress.steps(quiet=True) as say:
        say("loading")
        say("rewriting")
    assert capsys.readouterr() == ("", "")


def test_lines_that_differ_in_numbers_only_are_few():
    shown, now = [], [0.0]
    say = progress.Lines(shown.append, clock=lambda: now[0])
    say("loading")
    for number in range(1, 26):
        say(f"norm {number} of 25")
        now[0] += 0.5
    assert shown == ["loading", *(f"norm {n} of 25" for n in range(1, 26, 4))]


def test_the_version(capsys):
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"normfuse {normfuse.__version__}\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("normfuse rewr", ["rewrite"]),
        ("normfuse rewrite --target ", ["rms_norm", "crms_norm", "layer_norm"]),
        (
            "normfuse explain --only fold_",
            ["fold_constants", "fold_affine", "fold_factor", "fold_nested", "fold_scale"],
        ),
    ],
)
def test_the_shell_completes_commands_and_choices(words, offered):
    asked = {"_NORMFUSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv = ['normfuse']; from normfuse.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == offered


def test_choices_are_those_of_the_options():
    assert tuple(t.value for t in choices.Target) == _CHOICES["target"]
    assert tuple(b.value for b in choices.CrmsBasis) == _CHOICES["crms_basis"]
    assert tuple(r.value for r in choices.Rule) == RULE_NAMES
    assert tuple(v.value for v in choices.Verify) == _CHOICES["verify"]
    assert {d.value for d in choices.Dtype} == set(_DTYPES)
    assert tuple(c.value for c in Contender) == CONTENDERS


def test_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "Console", lambda **options: _Terminal())
    with progress.steps(quiet=False) as say:
        say("loading")
    assert "loading ..." in _Terminal.shown
    _Terminal.shown.clear()
    with progress.steps(quiet=True) as say:
        say("loading")
    assert _Terminal.shown == []


class _Terminal:
    """As much of a console as the progress needs."""

    shown: list[str] = []  # noqa: RUF012
    is_terminal = True

    def status(self, text):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, text):
        self.shown.append(text)


@pytest.mark.parametrize(
    "words",
    [
        ("explain", "{in}", "--json", "{in}"),
        ("explain", "{in}", "--html", "{in}"),
        ("verify", "{in}", "{in}", "--json", "{in}"),
        ("verify", "{in}", "{in}", "--html", "{in}"),
        ("verify", "{in}", "{in}", "--json", "{folder}/a", "--html", "{folder}/a"),
        ("rewrite", "{in}", "-o", "{folder}/out.pt2", "--json", "{in}"),
        ("rewrite", "{in}", "-o", "{folder}/out.pt2", "--json", "{folder}/out.map.json"),
        ("rewrite", "{in}", "-o", "{folder}/out.pt2", "--html", "{in}"),
        ("rewrite", "{in}", "-o", "{folder}/loop.pt2"),
        ("rewrite", "{in}", "-o", "{folder}/" + 300 * "x" + ".pt2"),
        ("rewrite", "/dev/zero", "-o", "{folder}/out.pt2"),
        ("rewrite", "{folder}/pipe", "-o", "{folder}/out.pt2"),
    ],
)
def test_no_file_is_read_and_written_or_read_without_end(words, original, tmp_path):
    before = original.read_bytes()
    (tmp_path / "loop.pt2").symlink_to("loop.pt2")
    os.mkfifo(tmp_path / "pipe")
    result = run(*(word.replace("{in}", str(original)).replace("{folder}", str(tmp_path)) for word in words))
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert original.read_bytes() == before
    assert left_in(tmp_path) == ["loop.pt2", "pipe"]


@pytest.mark.parametrize("words", [("rewrite", "-o", "{folder}/out.pt2"), ("explain",)])
def test_a_model_that_ends_the_program_is_named(words, tmp_path):
    command, *rest = (word.replace("{folder}", str(tmp_path)) for word in words)
    result = run(command, f"{MODELS}:leaves_in_forward", *rest)
    assert result.exit_code == 2
    assert "normfuse: the model's own code ended the program with 3" in result.output
    assert left_in(tmp_path) == []


def test_a_terminated_rewrite_leaves_nothing(original, tmp_path, tmp_path_factory):
    """The signal comes while the program is being written."""

    def end_while_saving():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.export.save = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGTERM)

    words = ["rewrite", str(original), "-o", str(tmp_path / "out.pt2"), "--verify", "off"]
    status, errors = forked.command(words, tmp_path_factory.mktemp("errors"), end_while_saving)
    assert status == 130, errors
    assert left_in(tmp_path) == []
    assert "Traceback" not in errors


def test_output_that_nobody_reads_is_no_error(original):
    words = f"{sys.executable} -m normfuse explain {original} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Drowned(torch.nn.Module):
    """In bfloat16 the angle is off by some turns, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin((self.norm(x) + 0.1) * 1e6)


def test_programs_of_which_nothing_can_be_judged_are_not_equivalent(tmp_path):
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    save_program(torch.export.export(Drowned().bfloat16(), (x,)), tmp_path / "a.pt2")
    result = run("verify", tmp_path / "a.pt2", tmp_path / "a.pt2", "--json", tmp_path / "v.json")
    assert result.exit_code == 1
    assert "could not be judged: the original is no yardstick for output on any input" in result.output
    assert json.loads((tmp_path / "v.json").read_text())["unjudged"] == ["output"]
