"""The changed modules have to do what the rewritten graph does: what differs is found and left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import normfuse
from normfuse.checkpoint import expressible, plan
from normfuse.checkpoint.case import case_of
from normfuse.checkpoint.expressible import changes_of
from normfuse.checkpoint.outline import Outline, Ref, Step, paired
from normfuse.checkpoint.outlines import outlined
from normfuse.checkpoint.planned import MismatchError
from normfuse.checkpoint.source import Folder
from normfuse.options import Options
from tests.checkpoint.folders import model, outputs, saved

pytestmark = pytest.mark.models


def other_eps(changes):
    norms = {path: replace(norm, eps=2 * norm.eps) for path, norm in changes.norms.items()}
    return replace(changes, norms=norms)


def other_kind(changes):
    """One removes a mean that nothing writes: the function is the same, and the graph is not."""
    first = next(iter(changes.norms))
    return replace(changes, norms=changes.norms | {first: replace(changes.norms[first], kind="layer_norm")})


FAULTS = {
    "eps": other_eps,
    "kind": other_kind,
    "no centring": lambda changes: replace(changes, centred=()),
    "a norm forgotten": lambda changes: replace(changes, norms=dict([*changes.norms.items()][1:])),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A folder, its rewritten graph, and the modules that do what the graph does."""
    given = saved(tmp_path_factory.mktemp("given") / "in", "gpt2", torch.float64)
    case = case_of(Folder(given))
    options = Options.checked({"only": ["recentre"], "verify": "off", "policy": "convert"}, prefix="")
    rewritten = outlined(case.model, case.inputs, options, case.small)
    return case, rewritten, changes_of(rewritten, case.model)[0]


def test_modules_that_do_the_same_are_taken(found):
    made = plan._checked(*found)
    assert len(made.changes.norms) == 5
    assert made.changes.centred == ("transformer.wte",)


@pytest.mark.parametrize("fault", FAULTS)
def test_modules_that_do_something_else_are_found(fault, found):
    case, rewritten, changes = found
    with pytest.raises(MismatchError, match="has no module that would do it"):
        plan._checked(case, rewritten, FAULTS[fault](changes))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_modules_that_do_something_else_are_not_written(fault, tmp_path, monkeypatch):
    def faulty(made, changes, original=plan.install):
        original(made, FAULTS[fault](changes) if changes.norms else changes)

    monkeypatch.setattr(plan, "install", faulty)
    given = saved(tmp_path / "in", "gpt2", torch.float64)
    done = normfuse.rewrite_folder(given, tmp_path / "out", only=["recentre"])
    assert done.report.after == {"layer_norm": 5}
    assert any("has no module that would do it" in note for note in done.report.notes)
    result = outputs(normfuse.load_checkpoint(tmp_path / "out"), "gpt2")
    assert torch.equal(result, outputs(model("gpt2", torch.float64), "gpt2"))


def test_a_norm_that_no_module_can_be_is_left_out_alone(tmp_path, monkeypatch):
    def refuse(path, spec, made, original=expressible._refuse):
        return "it is computed elsewhere" if path == "transformer.h.0.ln_2" else original(path, spec, made)

    monkeypatch.setattr(expressible, "_refuse", refuse)
    given = saved(tmp_path / "in", "gpt2", torch.float64)
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.report.after == {"layer_norm": 1, "rms_norm": 4}
    site = next(s for s in done.report.sites if s.module == "transformer.h.0.ln_2")
    assert site.refusal is not None
    assert site.refusal.code == "no_module"
    found = outputs(normfuse.load_checkpoint(tmp_path / "out"), "gpt2")
    assert torch.allclose(found, outputs(model("gpt2", torch.float64), "gpt2"), rtol=1e-11, atol=1e-11)


FIRST = (Ref(0),)


def graph(*steps, results=FIRST):
    return Outline(tuple(Step(what, operands, f"the {what}") for what, operands in steps), results)


SUM = ("add", (Ref("a"), Ref("b"), 1))


def test_inputs_are_paired_by_where_they_are_read():
    assert paired(graph(SUM), graph(("add", (Ref("x"), Ref("y"), 1)))) == {"x": "a", "y": "b"}


@pytest.mark.parametrize(
    "other",
    [
        graph(("sub", (Ref("x"), Ref("y"), 1))),
        graph(("add", (Ref("x"), Ref("y"), 2))),
        graph(("add", (Ref("x"), Ref("y"), 1.0))),
        graph(("add", (Ref("x"), Ref("x"), 1))),
        graph(("add", (Ref("x"), Ref(0), 1))),
        graph(SUM, SUM),
        graph(SUM, results=(Ref("a"),)),
        graph(SUM, results=(Ref(0), Ref(0))),
        graph(),
    ],
)
def test_graphs_that_differ_in_one_place_are_not_paired(other):
    assert isinstance(paired(graph(SUM), other), str)
