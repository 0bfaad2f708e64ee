"""Reports of compiled models: which of them, over which graphs, and what they advise."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normfuse
from normfuse.backends import evaluation, session
from tests.backends.networks import Block, prenorm

OPTIONS = {"normfuse.inner": "eager"}
X = torch.randn(4, 8)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def compiled(model):
    return torch.compile(model, backend="normfuse", options=OPTIONS)


def test_each_compiled_callable_has_its_own_report() -> None:
    model = prenorm(dtype=torch.float32)
    small, large = compiled(prenorm(dtype=torch.float32, depth=1)), compiled(model)

    @compiled
    def function(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (8,))

    with torch.no_grad():
        small(X), large(X), function(X)
    found = [normfuse.last_report(one).found["layer_norm"] for one in (small, large, function)]
    assert found == [2, 3, 1]
    assert normfuse.last_report().found == {"layer_norm": 1}
    assert normfuse.last_report(compiled(prenorm())).found == {}
    with pytest.raises(normfuse.InputError, match="this PreNorm is not compiled"):
        normfuse.last_report(model)
    with pytest.raises(normfuse.InputError, match="this function is not compiled"):
        normfuse.last_report(lambda x: x)


def test_modules_that_were_compiled_in_place_have_one() -> None:
    model = prenorm(dtype=torch.float32, depth=3)
    for block in model.blocks:
        block.compile(backend="normfuse", options=OPTIONS)
    with torch.no_grad():
        model(X)
    report = normfuse.last_report(model)
    assert report.found["layer_norm"] >= 1
    assert report.graphs + sum("compiled modules" in note for note in report.notes) >= 2
    whole = prenorm(dtype=torch.float32)
    whole.compile(backend="normfuse", options=OPTIONS)
    with torch.no_grad():
        whole(X)
    assert normfuse.last_report(whole).found == {"layer_norm": 3}


def test_a_report_goes_with_the_model_that_it_is_of() -> None:
    gc.collect()
    before = len(session._reports)
    fast = compiled(prenorm(dtype=torch.float32))
    with torch.no_grad():
        fast(X)
    assert len(session._reports) == before + 1
    del fast
    torch._dynamo.reset()
    gc.collect()
    assert len(session._reports) == before


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(8), Block(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e9:
            return x
        return self.second(x)


def test_a_broken_model_names_its_graphs_and_the_place() -> None:
    model = Broken().eval()
    fast = compiled(model)
    with torch.no_grad():
        fast(X)
    for report in (normfuse.last_report(fast), normfuse.explain(model, X)):
        assert report.found == {"layer_norm": 2}
        (place,) = report.breaks
        line = Broken.forward.__code__.co_firstlineno + 2
        assert place == f"at {__file__}:{line}: a branch depends on the values of a tensor"
        assert "in 2 graphs" in str(report)
        assert place in " ".join(str(report).split())
        assert report.to_dict()["breaks"] == [place]


@pytest.mark.parametrize(
    ("training", "gradients", "hints"), [(False, True, 1), (True, True, 0), (False, False, 0)]
)
def test_evaluation_with_gradients_gets_one_hint(
    monkeypatch: pytest.MonkeyPatch, training: bool, gradients: bool, hints: int
) -> None:
    monkeypatch.setattr(evaluation, "_said", False)
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(gradients):
        warnings.simplefilter("always")
        for depth in (1, 2):
            fast = compiled(prenorm(dtype=torch.float32, depth=depth).train(training))
            fast(X)
            assert sum("torch.no_grad()" in note for note in normfuse.last_report(fast).notes) == hints
    said = [w for w in caught if "torch.no_grad() for the inference rewrite" in str(w.message)]
    assert [w.filename for w in said] == [__file__] * hints


class Checkpointed(nn.Module):
    """Two blocks in graphs of their own, of which the second has a condition, and a norm outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = Block(8), Block(8), nn.LayerNorm(8)

    def choice(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.second, lambda x: nn.functional.rms_norm(x, (8,)), (x,))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.choice(checkpoint(self.first, x, use_reentrant=False)))


@pytest.mark.parametrize("door", ["compiled", "exported"])
def test_norms_in_inner_graphs_are_listed_and_left(door: str) -> None:
    model = Checkpointed().eval()
    with torch.no_grad():
        if door == "compiled":
            fast = compiled(model)
            torch.testing.assert_close(fast(X), model(X))
            report = normfuse.last_report(fast)
        else:
            made = normfuse.rewrite(model, (X,))
            torch.testing.assert_close(made.module()(X), model(X))
            report = made.report
    refusals = [s.refusal for s in report.sites if s.refusal is not None]
    inside = [s for s in report.sites if s.refusal and "the norm is in a graph that" in s.refusal.message]
    assert {r.code for r in refusals if "the norm is in" in r.message} == {"inner_graph"}
    if door == "compiled":
        assert {s.module for s in inside} == {"first.norm", "second.norm", ""}
    else:  # which looks through checkpointing, and keeps no names of modules inside of conditions
        assert sorted(s.kind for s in inside) == ["layer_norm", "rms_norm"]
    assert report.found == {"layer_norm": 3, "rms_norm": 1}
    assert all(s.source.startswith(__file__) or "networks" in s.source for s in report.sites)


def test_the_bodies_of_inner_graphs_stay_as_they_are() -> None:
    program = torch.export.export(Checkpointed().eval(), (X,))
    before = str(program), [set(n.meta) for m in program.graph_module.modules() for n in _nodes(m)]
    normfuse.rewrite(program, verify="off")
    assert (str(program), [set(n.meta) for m in program.graph_module.modules() for n in _nodes(m)]) == before


def _nodes(module: nn.Module) -> list[torch.fx.Node]:
    return list(module.graph.nodes) if isinstance(module, torch.fx.GraphModule) else []


def test_in_training_the_reason_names_the_policy() -> None:
    fast = compiled(prenorm(dtype=torch.float32).train())
    fast(X)
    refusals = [site.refusal for site in normfuse.last_report(fast).sites]
    assert {r.code for r in refusals} == {"does_not_pay"}
    assert all('policy="convert"' in r.remedy and "no_grad" not in r.remedy for r in refusals)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.blocks = nn.Sequential(Block(8), nn.LayerNorm(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.table(x))


def test_a_table_in_training_names_the_policy_and_that_helps() -> None:
    tokens = torch.randint(10, (2, 3))
    fast = compiled(Tokens())
    fast(tokens)
    refusals = {site.refusal for site in normfuse.last_report(fast).sites}
    assert {r.code for r in refusals} == {"table_copy"}
    assert all('policy="convert"' in r.remedy and "no_grad" not in r.remedy for r in refusals)
    asked = torch.compile(Tokens(), backend="normfuse", options=OPTIONS | {"normfuse.policy": "convert"})
    asked(tokens)
    assert normfuse.last_report(asked).after == {"rms_norm": 2}


def test_a_rewritten_program_prints_as_its_report() -> None:
    made = normfuse.rewrite(prenorm(dtype=torch.float32), (X,), verify="off")
    assert str(made) == str(made.report)
    assert (
        repr(made)
        == "<Rewritten: found 3 layer_norm; now 3 rms_norm; 12 weights folded, 0 explicit centrings>"
    )
