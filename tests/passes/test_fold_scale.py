"""Norms whose weight and bias go into what reads them: rewritten and compiled, against the original."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normfuse
from normfuse.backends.explain import explain_with
from normfuse.options import Options
from tests.passes import scale_norms, scale_readers
from tests.passes.affine_cases import Case
from tests.passes.building import distance, evaluate

pytestmark = pytest.mark.rounding

CASES = [*scale_readers.case.found, *scale_norms.case.found]
#: Sums of at most 54 products in float64, twice in a row: far below this many units of 1.1e-16.
EXACT = 1e-13


def codes(report: normfuse.Report) -> list[str]:
    """Why norms kept their weight or bias."""
    assert all(site.action != "reverted" for site in report.sites)
    kept = [site.refusals.get("fold_scale") for site in report.sites]
    assert all(refusal is None or refusal.message for refusal in kept)
    return sorted(refusal.code for refusal in kept if refusal is not None)


def is_bare(report: normfuse.Report) -> bool:
    """Whether the rule was applied to every norm that has a weight and that it left without a reason."""
    for site in report.sites:
        outcomes = ("fold_scale" in site.rules) + ("fold_scale" in site.refusals)
        scales = site.spec["has_scale"] or site.spec["has_shift"] or site.spec["post_factor"] != 1
        if outcomes != bool(scales):
            return False
    return bool(report.sites)


def same(found: list, wanted: list) -> bool:
    """Equal up to rounding; what is not finite in the original is no yardstick."""
    pairs = [(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(found, wanted, strict=True)]
    return all(distance([a], [b]) <= EXACT for a, b in pairs)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rewriting(case: Case) -> None:
    model = case.model()
    wanted = evaluate(copy.deepcopy(model), case.args)
    made = normfuse.rewrite(model, case.args, verify="off")
    assert same(evaluate(made.module(), case.args), wanted)
    assert codes(made.report) == sorted(case.codes)
    assert is_bare(made.report)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_compiling(case: Case) -> None:
    model = case.model()
    reference = copy.deepcopy(model)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    for _ in range(2):
        assert same(evaluate(fast, case.args), evaluate(reference, case.args))
    report = normfuse.last_report(fast)
    assert codes(report) == sorted(case.codes)
    assert is_bare(report)


@pytest.mark.parametrize(("bias", "added"), [(True, 0), (False, 4 * 8)])
def test_a_compiled_graph_holds_both_weights_and_a_program_one(bias: bool, added: int) -> None:
    """A bias that is made where there was none comes to what the program held."""
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4, bias=bias)).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options={"normfuse.inner": "eager"})
    with torch.no_grad():
        model[0].weight.add_(0.5)
        model[0].bias.add_(0.1)
        fast(x)
    both = (6 * 4 + 4) * 8
    beside = explain_with(Options(freeze="off"), model, (x,))
    assert normfuse.last_report(fast).copied_bytes == beside.copied_bytes == both
    assert normfuse.rewrite(model, (x,)).report.copied_bytes == added


def test_sizes_that_are_not_known() -> None:
    case = next(c for c in CASES if c.name == "one_weight_for_all_heads")
    model = case.model()
    fast = torch.compile(
        copy.deepcopy(model),
        backend=normfuse.normfuse_backend,
        options={"normfuse.inner": "eager"},
        dynamic=True,
    )
    for batch in (2, 3, 7):
        x = (torch.randn(batch, batch + 1, 3, 4, dtype=torch.float64),)
        assert same(evaluate(fast, x), evaluate(model, x))
    assert codes(normfuse.last_report(fast)) == []


def test_only_norms_with_a_weight_of_their_own_wait_for_the_rule() -> None:
    """Neither one without a weight nor one that is folded as a whole."""
    layers = (nn.BatchNorm1d(6), nn.ReLU(), nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm(6))
    model = nn.Sequential(*layers, nn.Linear(6, 4)).eval()
    report = normfuse.rewrite(model, (torch.randn(3, 6),), verify="off", skip=["fold_scale"]).report
    assert [site.module for site in report.sites if "fold_scale" in site.refusals] == ["3"]
    assert codes(report) == ["not_asked"]
