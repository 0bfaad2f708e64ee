"""Options that contradict one another: one sentence through every door, and nothing is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import normfuse
from normfuse.cli.app import app
from tests.backends.networks import example, prenorm

#: The width of the model's stream, and a matrix that may turn it.
WIDTH = next(m for m in prenorm().modules() if isinstance(m, torch.nn.LayerNorm)).normalized_shape[0]
RANDOM = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Q = torch.linalg.qr(RANDOM)[0]
CRMS = "{0}target='crms_norm'"
SOURCE = "tests.programs.models:factory"
COMPILED = "is for normfuse.rewrite, which stores the rotated weights"

#: Options of a rotation, and what ``normfuse.rewrite`` says; ``torch.compile`` takes none.
ROTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no rotation": ({"rotation": Q + 1}, "rotation is not orthogonal: its rows are off by"),
    "rounded to float32": ({"rotation": Q.float()}, "rotation is not orthogonal: its rows are off by"),
    "not a number": ({"rotation": Q * torch.nan}, "rotation is not orthogonal: its rows are off by nan"),
    "another size": ({"rotation": torch.eye(WIDTH + 1)}, f"the model's RMSNorms run over {WIDTH} channels"),
    "no square": ({"rotation": Q[:, 1:]}, "rotation takes a square matrix, not"),
    "several": ({"rotation": Q[None]}, "rotation takes a square matrix, not"),
    "empty": ({"rotation": torch.eye(0)}, "rotation takes a square matrix, not"),
    "no matrix": ({"rotation": "Q"}, "rotation takes a square matrix, not str"),
    "sparse": ({"rotation": Q.to_sparse()}, "rotation takes a dense matrix; call .to_dense()"),
    "complex": ({"rotation": Q.to(torch.complex128)}, "this one holds complex numbers"),
    "without numbers": ({"rotation": Q.to("meta")}, "this one holds no numbers"),
    "of another norm": ({"rotation": Q, "target": "crms_norm"}, "rotation goes with target='rms_norm'"),
    "of none": ({"rotation": Q, "target": "layer_norm"}, "rotation goes with target='rms_norm'"),
    "skipped": ({"rotation": Q, "skip": ["rotate"]}, "only or skip leaves out rotate"),
    "left out": ({"rotation": Q, "only": ["recentre"]}, "only or skip leaves out rotate"),
}

#: Options, and what all doors say; names of options have a prefix in ``torch.compile``.
TOGETHER: dict[str, tuple[dict[str, Any], str]] = {
    "unknown rule": ({"only": ["recenter"]}, "unknown rule recenter; did you mean recentre?"),
    "unknown rule to skip": ({"skip": ["fold_skale"]}, "unknown rule fold_skale; did you mean fold_scale?"),
    "only and skip": (
        {"only": ["recentre", "fold_scale"], "skip": ["recentre"]}, "{0}only and {0}skip both name recentre",
    ),
    "skipped what makes it": (
        {"target": "crms_norm", "skip": ["compress"]}, "{0}skip leaves out compress, which " + CRMS,
    ),
    "skipped what goes before": (
        {"target": "crms_norm", "skip": ["recentre"]}, "{0}skip leaves out recentre, which " + CRMS,
    ),
    "left out what makes it": (
        {"target": "crms_norm", "only": ["recentre"]}, "{0}only leaves out compress, which " + CRMS,
    ),
    "left out what goes before": (
        {"target": "crms_norm", "only": ["compress"]}, "{0}only leaves out recentre, which " + CRMS,
    ),
    "rule of another target": (
        {"only": ["compress"]}, "{0}only asks for compress, which does not run with {0}target='rms_norm'",
    ),
    "target without the rule": (
        {"only": ["recentre"], "target": "layer_norm"},
        "{0}only asks for recentre, which does not run with {0}target='layer_norm'",
    ),
    "basis of another target": ({"crms_basis": "orthonormal"}, "{0}crms_basis goes with " + CRMS),
    "rule without its matrix": ({"only": ["rotate"]}, "{0}only asks for rotate, which needs a matrix"),
}  # fmt: skip

#: Options that no command takes.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"only": "recentre"}, "{0}only takes a list of rule names"),
    "allow of another word": (
        {"allow": "approximately"},
        "{0}allow does not take 'approximately'; did you mean",
    ),
    "approximate as a whole": (
        {"allow": "approximate", "verify": "output"},
        "{0}verify='output' compares with the original",
    ),
    "not taken": ({"memory": "in_place"}, "{0}memory='in_place' is not taken: "),
    "unknown basis": (
        {"target": "crms_norm", "crms_basis": "helmert"},
        "{0}crms_basis does not take 'helmert'",
    ),
}

#: Options that only ``torch.compile`` takes.
COMPILING: dict[str, Any] = {"inner": "eager", "mode": "max-autotune", "freeze": "on", "lower": "triton"}


def compiled(model: torch.nn.Module, options: dict[str, Any]) -> None:
    given = {f"normfuse.{name}": value for name, value in {"inner": "eager", **options}.items()}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=given)
    with torch.no_grad():
        fast(example())


def rewritten(model: torch.nn.Module, options: dict[str, Any]) -> None:
    normfuse.rewrite(model, (example(),), **options)


def refused(door: Callable[[torch.nn.Module, dict[str, Any]], None], options: dict[str, Any]) -> str:
    """The first line of the error, after a look at the model."""
    model = prenorm()
    before, wanted = copy.deepcopy(model.state_dict()), model(example())
    with pytest.raises(normfuse.OptionError) as raised:
        door(model, options)
    held = model.state_dict()
    assert held.keys() == before.keys()
    assert all(torch.equal(held[name], before[name]) for name in before)
    assert torch.equal(model(example()), wanted)
    return str(raised.value).splitlines()[0]


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations(name: str) -> None:
    options, sentence = ROTATIONS[name]
    assert sentence in refused(rewritten, options)
    assert refused(compiled, options) == f"normfuse.rotation {COMPILED}"


@pytest.mark.parametrize("name", [*TOGETHER, *OTHERS])
def test_options(name: str) -> None:
    options, sentence = {**TOGETHER, **OTHERS}[name]
    assert refused(compiled, options).startswith(sentence.format("normfuse."))
    assert refused(rewritten, options).startswith(sentence.format(""))


@pytest.mark.parametrize("name", COMPILING)
def test_what_only_a_compilation_takes(name: str) -> None:
    assert refused(rewritten, {name: COMPILING[name]}).startswith(f"{name} is for torch.compile; ")


@pytest.mark.parametrize("name", TOGETHER)
def test_the_command_writes_nothing(name: str, tmp_path: Path) -> None:
    """A rule that is not known is refused where the words of the command are read."""
    options, sentence = TOGETHER[name]
    words = [
        word
        for option, value in options.items()
        for one in (value if isinstance(value, list) else [value])
        for word in (f"--{option.replace('_', '-')}", one)
    ]
    done = CliRunner().invoke(app, ["rewrite", SOURCE, "-o", str(tmp_path / "out.pt2"), *words])
    said = " ".join(done.output.split())
    known = sentence.format("") if not sentence.startswith("unknown") else "is not one of"
    assert (done.exit_code, known in said, list(tmp_path.iterdir())) == (2, True, [])


def test_the_command_takes_no_rotation(tmp_path: Path) -> None:
    words = ["rewrite", SOURCE, "-o", str(tmp_path / "out.pt2"), "--rotation", "q.pt"]
    done = CliRunner().invoke(app, words)
    known = "No such option: --rotation" in done.output
    assert (done.exit_code, known, list(tmp_path.iterdir())) == (2, True, [])


def test_rules_that_are_read_once() -> None:
    """An iterator names the same rules as a list of them."""
    found = normfuse.rewrite(prenorm(), (example(),), only=iter(["recentre"])).report
    assert all(site.action == "converted" for site in found.sites)
    options = {"skip": iter(["recentre"]), "only": ["recentre"]}
    assert refused(rewritten, options) == "only and skip both name recentre; leave it in one of them"


def test_freezing_is_asked_for_once() -> None:
    options = {"normfuse.freeze": "on", "freezing": True}
    assert "exclude each other" in refused(given_to_inductor, options)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"normfuse.inner": "eager", "max_autotune": True}, "max_autotune"),
        ({"normfuse.inner": "aot_eager", "normfuse.mode": "reduce-overhead"}, "triton.cudagraphs"),
    ],
)
def test_settings_of_inductor_without_effect_are_named(options: dict[str, Any], setting: str) -> None:
    given_to_inductor(prenorm(), options)
    (note,) = normfuse.last_report().notes
    assert note.startswith(f"normfuse.inner={options['normfuse.inner']!r} leaves out Inductor: ")
    assert setting in note


@pytest.mark.parametrize("options", [{1: 2}, "normfuse.freeze", ["max_autotune"]], ids=str)
def test_options_that_are_no_mapping(options: Any) -> None:
    assert refused(given_to_inductor, options).startswith("options takes a mapping from names to values")


def given_to_inductor(model: torch.nn.Module, options: Any) -> None:
    with torch.no_grad():
        torch.compile(model, backend=normfuse.normfuse_backend, options=options)(example())


def test_models_without_values() -> None:
    model, inputs = prenorm().to("meta"), (example().to("meta"),)
    sentence = "is on the meta device and has no values; load the model first"
    with pytest.raises(normfuse.InputError, match=sentence):
        normfuse.rewrite(model, inputs)
    with pytest.raises(normfuse.InputError, match=sentence):
        normfuse.verify(model, model, inputs)
