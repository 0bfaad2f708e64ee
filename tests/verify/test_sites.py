"""Site-by-site verification: what is over budget is undone, the rest stays converted, figures are kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

import normfuse
from normfuse.analysis import absorb
from normfuse.folding.recipe import FOLD
from normfuse.ir.emit import call
from normfuse.passes.catalogue import CATALOGUE
from normfuse.passes.place import Placement
from normfuse.verify.certificates import digest
from normfuse.verify.hostile import GENERATORS
from normfuse.verify.probe import Probe

pytestmark = pytest.mark.rounding

D = 6


class TwoStreams(nn.Module):
    """Two streams that do not meet; the first one has a LayerScale."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(D, D) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(4))
        self.scale = nn.Parameter(torch.linspace(-1, 2, D))

    def forward(self, x):
        h = self.a(x)
        h = h + self.scale * self.b(self.norms[0](h))
        first = self.norms[1](h)
        k = self.c(x)
        k = k + self.d(self.norms[2](k))
        return first, self.norms[3](k)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TwoStreams().eval()


@pytest.fixture
def x():
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))


def forgotten_scale(node, found, maps, weights):
    return absorb.absorb(found.operand, found.axis, maps, weights)


def actions(report):
    return [site.action for site in report.sites]


def test_every_site_is_measured_on_captured_and_hostile_inputs(model, x):
    report = normfuse.rewrite(model, (x,)).report
    assert actions(report) == ["converted"] * 4
    for site in report.sites:
        assert {"captured", "large mean", "constant rows", "nan"} <= set(site.errors)
        assert set(site.errors) <= {"captured", "random 1", *GENERATORS}
        assert all(ratio < 3.5 for ratio in site.errors.values())


def test_a_wrong_rewrite_is_undone_and_the_rest_goes_on(model, x):
    with patch("normfuse.analysis.absorb._absorb_scale", forgotten_scale):
        made = normfuse.rewrite(model, (x,))
    assert actions(made.report) == ["converted", "reverted", "converted", "converted"]
    refusal = made.report.sites[1].refusal
    assert refusal.code == "over_budget"
    assert "times as far from float64" in refusal.message
    assert max(made.report.sites[1].errors.values()) > 1000
    assert made.report.after == {"layer_norm": 1, "rms_norm": 3}
    assert normfuse.verify(model, made, (x,)).ok


def test_a_norm_that_was_given_up_changes_no_weight_for_its_own_sake(model, x):
    """Its stream is explored again from the other norm, which stays for a reason of its own."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)
            self.first, self.second = nn.LayerNorm(D), nn.LayerNorm(D)

        def forward(self, x):
            h = self.a(x)
            return self.first(h), self.second(h + torch.relu(self.b(x)))

    shared = Shared().eval()
    from normfuse.passes import recentre

    def broken(norm, spec, operands, original=recentre.respell):
        original(norm, replace(spec, eps=1.0), operands)

    with patch.object(recentre, "respell", broken):
        made = normfuse.rewrite(shared, (x,))
    assert actions(made.report) == ["reverted", "kept"]
    assert (made.report.folded, made.report.centrings) == (0, 0)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(made.module()(x), shared(x), strict=True))


def test_weights_that_were_changed_for_nothing_are_put_back(model, x):
    """Whatever changes weights without changing a norm is measured as well."""
    from normfuse.passes import recentre

    def shifted(self, leaf, before):
        with before.graph.inserting_before(before):
            made = call(before.graph, torch.ops.aten.relu.default, leaf.node)
        made.meta[FOLD] = True
        return made

    with (
        patch.object(recentre, "_convert", lambda *_: None),
        patch.object(Placement, "fold", shifted),
    ):
        made = normfuse.rewrite(model, (x,), skip=["fold_scale"])
    assert set(actions(made.report)) == {"kept"}
    assert any("undone" in note for note in made.report.notes)
    assert all(site.certificate is None for site in made.report.sites)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(made.module()(x), model(x), strict=True))


def test_without_verification_the_wrong_rewrite_stays(model, x):
    with patch("normfuse.analysis.absorb._absorb_scale", forgotten_scale):
        made = normfuse.rewrite(model, (x,), verify="off")
    assert actions(made.report) == ["converted"] * 4
    assert all(site.errors == {} for site in made.report.sites)
    assert not normfuse.verify(model, made, (x,)).ok


def test_a_rule_that_is_wrong_everywhere_changes_nothing_in_the_end(model, x):
    with patch.object(Placement, "fold", lambda self, leaf, before: leaf.node):
        made = normfuse.rewrite(model, (x,))
    assert set(actions(made.report)) == {"reverted"}
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(made.module()(x), model(x), strict=True))


def test_the_backend_verifies_sites_too(model, x):
    options = {"normfuse.inner": "eager", "normfuse.verify": "sites"}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options)
    with torch.no_grad(), patch("normfuse.analysis.absorb._absorb_scale", forgotten_scale):
        made, wanted = fast(x), model(x)
    assert actions(normfuse.last_report()).count("reverted") == 1
    assert max(float((a - b).abs().max()) for a, b in zip(made, wanted, strict=True)) < 1e-5


def test_a_loss_that_only_hostile_inputs_show_is_undone(model, x):
    """An eps that is lost hardly matters to ordinary inputs, and is all that counts for constant rows."""
    with torch.no_grad():
        for linear in (model.a, model.b, model.c, model.d):
            linear.bias.zero_()
    from normfuse.passes import recentre

    def without_eps(norm, spec, operands, original=recentre.respell):
        original(norm, replace(spec, eps=1e-12), operands)

    with patch.object(recentre, "respell", without_eps):
        report = normfuse.rewrite(model, (x * 30,)).report
    assert "reverted" in actions(report)
    guilty = next(s for s in report.sites if s.refusal is not None)
    assert "captured" not in guilty.refusal.message


def test_a_form_that_is_not_finite_is_undone_and_the_report_stays_valid_json(model, x):
    from normfuse.passes import recentre

    def broken(norm, spec, operands, original=recentre.respell):
        original(norm, replace(spec, eps=-1e3), operands)

    with patch.object(recentre, "respell", broken):
        report = normfuse.rewrite(model, (x,)).report
    assert set(actions(report)) == {"reverted"}
    plain = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert max(plain["sites"][0]["errors"].values(), default=0.0) >= 0.0


def test_recognition_that_changes_bits_is_not_trusted(model, x, monkeypatch):
    """The class bitwise is checked: a broken stage before the rules is noticed."""
    from normfuse.passes import pipeline

    def broken(gm):
        for node in gm.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                with gm.graph.inserting_after(node):
                    made = gm.graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.0000001))
                made.meta = dict(node.meta)
                node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
        return 0

    monkeypatch.setattr(pipeline, "canonicalize", broken)
    report = normfuse.rewrite(model, (x,)).report
    assert set(actions(report)) == {"reverted"}
    assert {s.refusal.code for s in report.sites} == {"recognition_not_bitwise"}


def test_inputs_weights_and_random_state_are_as_before(model, x):
    class Writes(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.inner(x)

    wrapped, before, state = Writes(model).eval(), x.clone(), torch.get_rng_state()
    weights = {n: p.clone() for n, p in model.state_dict().items()}
    made = normfuse.rewrite(wrapped, (x,))
    assert actions(made.report) == ["converted"] * 4
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert wrapped.calls == 0
    assert all(torch.equal(weights[n], p) for n, p in model.state_dict().items())
    assert float(made.program.state_dict["calls"]) == 0.0


def test_integer_inputs_stay_inside_the_table():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.head = nn.Embedding(5, D), nn.LayerNorm(D), nn.Linear(D, 3)

        def forward(self, ids):
            return self.head(self.norm(self.table(ids)))

    (site,) = normfuse.rewrite(Tokens().eval(), (torch.tensor([[0, 4, 2]]),)).report.sites
    assert site.action == "converted"
    others = {"random 1", "other integers", "first rows only", "last rows only"}
    assert set(site.errors) == {"captured", *others}


def test_a_program_without_example_inputs_says_that_it_was_not_verified(model, x):
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False)
    exported._example_inputs = None
    report = normfuse.rewrite(exported).report
    assert actions(report) == ["converted"] * 4
    assert any("not verified" in note for note in report.notes)


def test_a_certificate_names_rule_conditions_weights_and_versions(model, x):
    report = normfuse.rewrite(model, (x,)).report
    ((rule, found),) = (one.values() for one in report.to_dict()["sites"][1]["rewrites"])
    assert rule == found["rule"] == "recentre"
    assert found["equation"] == CATALOGUE["recentre"].equation
    assert [c["condition"] for c in found["conditions"]] == list(CATALOGUE["recentre"].conditions)
    assert all(c["nodes"] for c in found["conditions"])
    assert {w["name"] for w in found["weights"]} == {"a.weight", "a.bias", "b.weight", "b.bias", "scale"}
    (weight,) = [w for w in found["weights"] if w["name"] == "a.weight"]
    assert weight["before"] == digest(model.a.weight)
    wide = model.a.weight.double()
    assert weight["after"] == [digest((wide - wide.mean(0)).float())]
    assert found["errors"] == report.sites[1].errors
    assert set(found["versions"]) == {"normfuse", "torch", "python"}
    assert '"certificate"' in report.to_json()


class Normed(nn.Module):
    """Norms with stored statistics behind, before and beside a weight, and one of a weight."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(D, D, k, padding=k // 2) for k in (3, 1, 3))
        self.norms = nn.ModuleList(nn.BatchNorm1d(D) for _ in range(3))

    def forward(self, x):
        h = self.norms[0](self.convs[0](x)).relu()
        h = self.convs[1](self.norms[1](h)).relu()
        h = (self.convs[2](h) + self.norms[2](h)).relu()
        weight = self.convs[0].weight
        mean, var = weight.mean((1, 2), keepdim=True), weight.var((1, 2), keepdim=True, unbiased=False)
        return nn.functional.conv1d(h, (weight - mean) / torch.sqrt(var + 1e-5))


def test_a_norm_that_was_folded_has_a_certificate():
    torch.manual_seed(0)
    model = Normed().eval()
    for norm in model.norms:
        norm.running_mean.normal_(0, 0.1)
        norm.bias.data.normal_()
    for conv in model.convs:  # whose results are larger than what stands beside them
        conv.weight.data.mul_(3)
    made = normfuse.rewrite(model, (torch.randn(2, D, 7),))
    found = [site.certificate for site in made.report.sites]
    assert actions(made.report) == ["folded"] * 4
    rule = CATALOGUE["fold_affine"]
    assert [c["equation"] for c in found] == [*rule.forms.values(), CATALOGUE["fold_constants"].equation]
    for certificate in found:
        named = CATALOGUE[certificate["rule"]]
        assert [c["condition"] for c in certificate["conditions"]] == list(named.conditions)
        assert all(c["nodes"] for c in certificate["conditions"])
        assert certificate["source"]
        assert certificate["numerics"] == named.numerics.value
        assert set(certificate["versions"]) == {"normfuse", "torch", "python"}
    stored = ("weight", "bias", "running_mean", "running_var")
    for index, certificate in enumerate(found[:3]):
        names = {f"norms.{index}.{name}" for name in stored}
        assert {w["name"] for w in certificate["weights"]} == names | {
            f"convs.{index}.weight", f"convs.{index}.bias",
        }  # fmt: skip
    assert [w["name"] for w in found[3]["weights"]] == ["convs.0.weight"]
    held = {digest(v) for v in made.program.state_dict.values()}
    for weight in (w for certificate in found for w in certificate["weights"]):
        assert weight["before"] == digest(model.state_dict()[weight["name"]])
        assert weight["after"]
        assert set(weight["after"]) <= held


def test_the_folded_weight_in_a_certificate_is_the_one_in_the_program(model, x):
    made = normfuse.rewrite(model, (x,))
    held = {digest(v) for v in made.program.state_dict.values()}
    for site in made.report.sites:
        for weight in site.certificate["weights"]:
            assert set(weight["after"]) <= held


def test_a_norm_that_stays_has_no_certificate(model, x):
    report = normfuse.rewrite(model, (x,), only=[]).report
    assert [s.certificate for s in report.sites] == [None] * 4


def test_a_digest_depends_on_values_shape_and_dtype():
    one = torch.arange(6.0)
    others = [one.view(2, 3), one.double(), one + 1, one.flip(0)]
    assert digest(one) == digest(one.clone())
    assert len({digest(one), *map(digest, others)}) == 5
    assert digest(one.view(2, 3).t()) == digest(one.view(2, 3).t().contiguous())
    assert len(hashlib.sha256().hexdigest()) == len(digest(torch.empty(0)))


class Reciprocal(nn.Module):
    """What it is made of may be zero, which Python refuses."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x):
        return self.norm(self.lin(x)) * (1 / x.sum().item())


def test_hostile_inputs_that_the_original_does_not_take_are_left_out(capfd):
    made = normfuse.rewrite(Reciprocal().eval(), (torch.rand(4, D),))
    assert actions(made.report) == ["converted"]
    assert "zeros" not in made.report.errors
    assert "captured" in made.report.errors
    assert capfd.readouterr().err == ""


class Selected(nn.Module):
    """How many rows it returns depends on how it rounds, where numbers are large."""

    def __init__(self):
        super().__init__()
        self.lin, self.last = nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, x):
        y = self.last(self.norm(self.lin(x)))
        return y[torch.sin(x[:, 0] * 1e3) * x[:, 0] > 0]


def test_one_set_of_inputs_that_says_nothing_takes_no_other_along():
    torch.manual_seed(0)
    made = normfuse.rewrite(Selected().eval(), (torch.randn(64, D),))
    assert actions(made.report) == ["converted"]
    assert made.report.notes == []
    assert "captured" in made.report.errors
    assert "1e30" not in made.report.errors


def test_a_rewritten_program_that_does_not_run_is_undone(model, x):
    run = Probe.run

    plain = len(list(model.parameters())) + 1

    def fails(self, inputs):
        if len(inputs) > plain:  # folded weights behind them
            raise TypeError("no such shape")
        return run(self, inputs)

    with patch.object(Probe, "run", fails):
        report = normfuse.rewrite(model, (x,)).report
    assert set(actions(report)) == {"reverted"}


def test_a_rewritten_program_of_another_dtype_is_undone(model, x):
    """On the captured inputs; nothing says more plainly that it is another function."""
    run, plain = Probe.run, len(list(model.parameters())) + 1

    def widens(self, inputs):
        found = run(self, inputs)
        return [value.double() for value in found] if len(inputs) > plain else found

    with patch.object(Probe, "run", widens):
        report = normfuse.rewrite(model, (x,)).report
    assert set(actions(report)) == {"reverted"}
    assert report.notes == []
