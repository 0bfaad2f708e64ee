"""Telling what would happen, and what happened."""

from __future__ import annotations

import json
import logging

import pytest
import torch

import normfuse
from normfuse.report import ACTIONS
from tests.backends.networks import PreNorm, example, prenorm

EAGER = {"normfuse.inner": "eager"}


def test_explain_leaves_the_model_alone() -> None:
    model = prenorm()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = normfuse.explain(model, example())
    assert (report.found, report.after) == ({"layer_norm": 3}, {"rms_norm": 3})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert "forward" not in vars(model)


class Counting(torch.nn.Module):
    """Writes to buffers, to its input, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = prenorm(dtype=torch.float32), torch.nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        seen.add_(x)
        found: torch.Tensor = self.inner(self.norm(x)) + torch.rand(1)
        return found


def test_explain_leaves_buffers_inputs_and_the_random_state_alone() -> None:
    model, x = Counting().train(), example(dtype=torch.float32)
    seen, before = torch.zeros_like(x), {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.get_rng_state()
    normfuse.explain(model, x, seen)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not seen.any()
    assert torch.equal(torch.get_rng_state(), drawn)


def test_explain_says_what_compile_does() -> None:
    model = prenorm()
    told = normfuse.explain(model, example())
    with torch.no_grad():
        torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)(example())
    done = normfuse.last_report()
    assert [(s.module, s.action, s.spec) for s in told.sites] == [
        (s.module, s.action, s.spec) for s in done.sites
    ]


def test_explain_many_times() -> None:
    """Dynamo stops compiling one function after a few variants; explaining must not run into that."""
    model = prenorm(depth=0)
    found = [normfuse.explain(model, example(batch)).found for batch in range(2, 12)]
    assert found == [{"layer_norm": 1}] * 10


def test_explain_in_training_mode_tells_of_training() -> None:
    report = normfuse.explain(prenorm().train(), example())
    assert {s.refusal.code for s in report.sites} == {"does_not_pay"}


def test_sites() -> None:
    report = normfuse.explain(prenorm(), example())
    site = report.sites[0]
    assert (site.module, site.kind, site.becomes, site.action) == (
        "blocks.0.norm",
        "layer_norm",
        "rms_norm",
        "converted",
    )
    assert site.source.split(":")[0].endswith(".py")
    assert site.spelling == "layer_norm"
    assert site.spec["eps"] == 1e-5
    assert {s.action for s in report.sites} <= set(ACTIONS)


class Returned(PreNorm):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.blocks[0](self.embed(x))
        return self.norm(x), x


class Broken(PreNorm):
    """A graph break between the blocks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](self.embed(x))
        torch._dynamo.graph_break()
        return self.head(self.norm(self.blocks[1](x)))


def test_refusals_have_a_remedy_and_a_node() -> None:
    model = Returned().double().eval()
    report = normfuse.explain(model, example())
    refusals = [s.refusal for s in report.sites]
    assert {r.code for r in refusals} == {"stream_is_output"}
    assert all(r.message and r.node and r.remedy for r in refusals)


def test_graph_breaks_join_in_one_report() -> None:
    model = Broken().double().eval()
    with torch.no_grad():
        fast = torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)
        assert torch.allclose(fast(example()), model(example()), rtol=1e-12)
    report = normfuse.last_report()
    assert (report.graphs, report.found) == (2, {"layer_norm": 3})
    codes = [s.refusal.code if s.refusal else s.action for s in report.sites]
    assert codes == ["stream_is_output", "converted", "converted"]
    assert report.centrings == 1


def test_formats(tmp_path) -> None:
    report = normfuse.explain(Returned().double().eval(), example())
    assert json.loads(report.to_json()) == json.loads(json.dumps(report.to_dict()))
    assert report.to_dict()["sites"][0]["refusal"]["code"] == "stream_is_output"
    page = report.to_html(tmp_path / "report.html").read_text()
    assert "blocks.0.norm" in page
    assert "stream_is_output" in page
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    text = str(report)
    assert "found 2 layer_norm" in text
    assert "Remedy" in text


def test_logging(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="normfuse"), torch.no_grad():
        torch.compile(prenorm(), backend=normfuse.normfuse_backend, options=EAGER)(example())
    assert any("found 3 layer_norm" in r.getMessage() for r in caplog.records)


def test_last_report_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfuse.backends import session

    monkeypatch.setattr(session, "_latest", (None, {}))
    assert normfuse.last_report().found == {}


@pytest.mark.parametrize("door", [normfuse.explain, lambda m, x: normfuse.rewrite(m, (x,))])
def test_bad_models(door) -> None:
    with pytest.raises(normfuse.InputError, match="compiled already"):
        door(torch.compile(prenorm(), backend="eager"), example())
    compiled_in_place = prenorm()
    compiled_in_place.compile(backend="eager")
    with pytest.raises(normfuse.InputError, match="compiled already"):
        door(compiled_in_place, example())
    with pytest.raises(
        normfuse.CaptureError,
        match=r"cannot (be exported|run) with these inputs.*must have same reduction dim",
    ):
        door(prenorm(), torch.randn(4, 6, 9, dtype=torch.float64))


def test_bad_rewrites(tmp_path) -> None:
    with pytest.raises(normfuse.InputError, match=r"expected a torch\.nn\.Module"):
        normfuse.rewrite("model", (example(),))
    with pytest.raises(normfuse.InputError, match=r"write \(x,\)"):
        normfuse.rewrite(prenorm(), example())
    with pytest.raises(normfuse.InputError, match=r"training mode; call .eval\(\)"):
        normfuse.rewrite(prenorm().train(), (example(),))
    with pytest.raises(normfuse.OptionError, match="did you mean"):
        normfuse.rewrite(prenorm(), (example(),), target="rmsnorm")
    with pytest.raises(normfuse.OptionError, match="unknown option"):
        normfuse.rewrite(prenorm(), (example(),), polcy="pays")
    with pytest.raises(normfuse.ExpectationError, match="expected 4 rms_norm"):
        normfuse.rewrite(prenorm(), (example(),), expect={"rms_norm": 4})
    with pytest.raises(normfuse.InputError, match="does not exist"):
        normfuse.rewrite(prenorm(), (example(),)).save(tmp_path / "nowhere" / "out.pt2")


def test_a_saved_program_is_one_file_without_layer_norms(tmp_path) -> None:
    path = normfuse.rewrite(prenorm(), (example(),)).save(tmp_path / "out.pt2")
    assert list(tmp_path.iterdir()) == [path]
    graph = str(torch.export.load(path).graph)
    assert "layer_norm" not in graph
    assert "rms_norm" in graph


def test_rewrite_of_an_exported_program_keeps_it() -> None:
    model = prenorm()
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(model, (example(),), dynamic_shapes=({0: batch},))
        text, state = str(exported.graph), {k: v.clone() for k, v in exported.state_dict.items()}
        result = normfuse.rewrite(exported)
        assert result.report.after == {"rms_norm": 3}
        assert str(exported.graph) == text
        assert all(torch.equal(v, state[k]) for k, v in exported.state_dict.items())
        for size in (3, 17):
            assert torch.allclose(result.module()(example(size)), model(example(size)), rtol=1e-12)
    assert list(result.program.state_dict) == list(exported.state_dict)


def test_table_names_the_layers() -> None:
    text = str(normfuse.explain(prenorm(depth=3), example()))
    assert "blocks.{0-2}.norm" in text
    assert "x3" in text


class BrokenFirst(PreNorm):
    """A graph break before the first operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)


def test_a_new_model_starts_a_new_report() -> None:
    with torch.no_grad():
        for depth in (1, 2):
            model = BrokenFirst(depth=depth).double().eval()
            torch.compile(model, backend=normfuse.normfuse_backend, options=EAGER)(example())
            assert normfuse.last_report().found == {"layer_norm": depth + 1}


def test_html_needs_a_folder(tmp_path) -> None:
    with pytest.raises(normfuse.InputError, match="does not exist"):
        normfuse.explain(prenorm(), example()).to_html(tmp_path / "nowhere" / "report.html")


def test_what_invalidate_takes() -> None:
    with pytest.raises(normfuse.InputError, match=r"expected the torch\.nn\.Module"):
        normfuse.invalidate(3)


class Odd(torch.nn.Module):
    """Buffers that cannot be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()
        self.register_buffer("sparse", torch.eye(3).to_sparse_csr())
        self.register_buffer("never", torch.empty(3, device="meta"))
        self.register_buffer("later", torch.nn.parameter.UninitializedBuffer())
        self.register_buffer("unknown", torch.full((2,), torch.nan))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unknown.fill_(1.0)
        found: torch.Tensor = self.inner(x)
        return found


def test_buffers_that_cannot_be_compared_are_no_obstacle() -> None:
    model = Odd()
    assert normfuse.explain(model.eval(), example()).after == {"rms_norm": 3}
    assert model.unknown.isnan().all()
