"""Which forms of LayerNorm become RMSNorm, and what happens to those that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.analysis.cost import Traffic
from normfuse.capture.exported import program_of
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline

pytestmark = pytest.mark.rounding


class Written(nn.Module):
    """A linear, and a norm written out."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 16)
        self.weight = nn.Parameter(torch.rand(16) + 0.5)
        self.norm = norm

    def forward(self, x):
        return self.norm(self.lin(x), self.weight)


def by_variance(h, w):
    return (h - h.mean(-1, True)) * torch.rsqrt(h.var(-1, keepdim=True, unbiased=False) + 1e-5) * w


def scaled(h, w):
    return torch.nn.functional.layer_norm(h, (16,), w) * 0.125


def in_groups(h, w):
    return torch.nn.functional.layer_norm(h.view(4, 2, 8), (8,)).view(4, 16) * w


def unbiased(h, w):
    return (h - h.mean(-1, True)) / (h.std(-1, keepdim=True) + 1e-5) * w


def by_group_norm(h, w):
    return torch.nn.functional.group_norm(h, 4, w)


def by_length(h, w):
    return torch.nn.functional.normalize(h, dim=-1) * w


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [by_variance, scaled])
def test_converted(norm, dtype) -> None:
    torch.manual_seed(0)
    model, x = Written(norm).to(dtype).eval(), torch.randn(4, 8, dtype=dtype)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rms_norm": 1}
    verdict = normfuse.verify(model, made, (x,))
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize(
    ("norm", "kind", "code"),
    [
        (in_groups, "layer_norm", "unusual_form"),
        (unbiased, "layer_norm", "unusual_form"),
        (by_group_norm, "group_norm", "no_rule"),
        (by_length, "l2_norm", "no_mean"),
    ],
)
def test_kept_with_a_reason(norm, kind, code) -> None:
    model, x = Written(norm).eval(), torch.randn(4, 8)
    made = normfuse.rewrite(model, (x,))
    (site,) = made.report.sites
    assert (site.kind, site.action, site.becomes) == (kind, "kept", kind)
    assert site.refusal is not None
    assert site.refusal.code == code
    assert site.refusal.message
    assert torch.equal(made.module()(x), model(x))


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)

    def forward(self, ids):
        return self.norm(self.table(ids))


def test_a_table_is_replaced_in_a_program_and_not_copied_beside_a_model() -> None:
    model, ids = Table().eval(), torch.tensor([[1, 2]])
    assert normfuse.rewrite(model, (ids,)).report.after == {"rms_norm": 1}
    options = {"normfuse.inner": "eager"}
    with torch.no_grad():
        torch.compile(model, backend=normfuse.normfuse_backend, options=options)(ids)
    (site,) = normfuse.last_report().sites
    assert site.refusal.code == "table_copy"


class Entering(nn.Module):
    """Values that come from outside, read by two norms: one centring would serve both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)

    def forward(self, x):
        return self.first(x * 2), self.second(-x)


@pytest.mark.parametrize(("policy", "centrings"), [("convert", 1), ("pays", 0)])
def test_the_policy_says_whether_a_centring_may_be_added(policy: str, centrings: int) -> None:
    report = normfuse.rewrite(Entering().eval(), (torch.randn(4, 6),), policy=policy, verify="off").report
    assert report.centrings == centrings
    assert report.after == ({"rms_norm": 2} if centrings else {"layer_norm": 2})


class CRMSNorm(nn.Module):
    def forward(self, x):
        square = (x.square().sum(-1, keepdim=True) + x.sum(-1, keepdim=True).square()) / (x.shape[-1] + 1)
        return x * torch.rsqrt(square + 1e-5)


REASONS = {
    "several_axes": nn.LayerNorm((3, 8)),
    "already_rms_norm": nn.RMSNorm(8),
    "already_crms_norm": CRMSNorm(),
    "no_rule": nn.GroupNorm(1, 3),
    "nonlinear_writer": nn.BatchNorm1d(3),
}


@pytest.mark.parametrize("code", REASONS)
def test_norms_that_no_recentring_changes_have_their_own_reason(code: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), REASONS[code], nn.Sigmoid()).eval()
    (site,) = normfuse.rewrite(model, (torch.randn(2, 3, 8),)).report.sites
    assert site.refusal is not None
    assert site.refusal.code == code


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_what_is_centred_once_pays_also_where_gradients_are_recorded(records: bool, trains: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Sigmoid()).requires_grad_(trains)
    program = program_of(torch.export.export(model.eval(), (torch.randn(2, 8),)))
    program.grad_enabled = records
    report, _ = run_pipeline(program, Options())
    (site,) = report.sites
    assert site.action == ("kept" if records and trains else "converted")
    assert (site.refusal.code if site.refusal else "") == ("does_not_pay" if records and trains else "")


def test_a_conversion_pays_that_saves_more_than_it_costs_or_costs_nothing() -> None:
    assert Traffic(saved=3.0, spent=2.0).pays
    assert not Traffic(saved=2.0, spent=3.0).pays
    assert Traffic(saved=0.0, spent=0.0).pays
