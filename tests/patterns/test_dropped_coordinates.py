"""A CRMSNorm is recognised however it is written, nothing is mistaken for one, and lifting changes no bit."""

from __future__ import annotations

import pytest
import torch

import normfuse
from bench.corpus.formula import evaluate
from normfuse.ir import norms_in
from tests.patterns import dropped_coordinates as forms
from tests.patterns.capturing import lifted
from tests.patterns.test_recognition import hostile, operands, rounded, same_bits

pytestmark = pytest.mark.rounding

EVERYTHING = {**forms.SPELLINGS, **{name: function for name, (function, _) in forms.FORMS.items()}}


@pytest.mark.parametrize("name", sorted(forms.SPELLINGS))
def test_one_description_for_all_spellings(name: str) -> None:
    x, w, b = operands(torch.float32)
    ((_, expected),) = norms_in(lifted(forms.published, (x, w, b)).program.gm)
    work = lifted(forms.SPELLINGS[name], (x, w, b))
    ((node, region),) = norms_in(work.program.gm)
    assert region.spec == expected.spec
    assert region.operands(node).source.name == "x_1"
    for value in (x, *hostile(torch.float32)):
        assert same_bits(work.program.gm(value, w, b), forms.SPELLINGS[name](value, w, b))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in sorted(forms.FORMS)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        if dtype == torch.float32 or not name.startswith("written out")
    ],
)
def test_forms(name: str, dtype: torch.dtype) -> None:
    function, expected = forms.FORMS[name]
    x, w, b = operands(dtype)
    work = lifted(function, (x, w, b))
    (site,) = work.report.sites
    assert (site.kind, site.spec["basis"], site.refusal) == ("crms_norm", "drop_last", None)
    assert {k: rounded(site.spec[k]) for k in expected} == {k: rounded(v) for k, v in expected.items()}
    for value in (x, *hostile(dtype)):
        assert same_bits(work.program.gm(value, w, b), function(value, w, b))


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_the_description_is_the_function(name: str) -> None:
    """In float64; 1e-12 is 4,500 ulps for sums of 41 numbers that are no more than 8 apart."""
    dtype = torch.float32 if "float32" in name else torch.float64
    ((node, region),) = norms_in(lifted(EVERYTHING[name], operands(dtype)).program.gm)
    values = [torch.randn(a.meta["val"].shape, dtype=a.meta["val"].dtype) + 2 for a in node.args]
    spec = region.spec
    roles = ["source", *(["scale"] if spec.has_scale else []), *(["shift"] if spec.has_shift else [])]
    wanted = evaluate(spec, dict(zip(roles, values, strict=True)))
    tolerance = 5e-7 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(region(*values).double(), wanted, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", sorted(forms.NEAR_MISSES))
def test_near_misses_are_not_lifted(name: str) -> None:
    x, w, b = operands(torch.float32)
    work = lifted(forms.NEAR_MISSES[name], (x, w, b))
    assert norms_in(work.program.gm) == []
    assert {s.kind for s in work.report.sites} <= {"unknown_norm"}
    assert same_bits(work.program.gm(x, w, b), forms.NEAR_MISSES[name](x, w, b))


@pytest.mark.parametrize("name", sorted(forms.OTHER_PARTS))
def test_other_parts_are_those_of_an_rms_norm(name: str) -> None:
    x, w, b = operands(torch.float32)
    work = lifted(forms.OTHER_PARTS[name], (x, w, b))
    ((node, region),) = norms_in(work.program.gm)
    assert region.spec.kind == "rms_norm"
    assert node.meta["val"].shape[-1] == 9
    assert same_bits(work.program.gm(x, w, b), forms.OTHER_PARTS[name](x, w, b))


def test_a_coordinate_rounded_to_half_precision_is_another_one() -> None:
    def function(x, w, b):
        y = forms.whole(x)
        h = y.float()
        return (h * forms.root(h)).to(x.dtype)[..., :-1]

    (site,) = lifted(function, operands(torch.bfloat16)).report.sites
    assert site.kind == "rms_norm"
    (site,) = lifted(function, operands(torch.float32)).report.sites
    assert site.kind == "crms_norm"


@pytest.mark.parametrize("name", ["published", "written out", "written out, native"])
def test_nothing_converts_it_and_the_report_says_so(name: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)
            self.weight, self.bias = torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(8) / 9)

        def forward(self, x):
            return self.out(forms.SPELLINGS[name](self.into(x).sigmoid(), self.weight, self.bias))

    model = Model().eval()
    made = normfuse.rewrite(model, (torch.randn(3, 5, 6),), verify="sites", expect={"crms_norm": 1})
    (site,) = made.report.sites
    assert site.refusal is not None
    assert (site.kind, site.becomes, site.rules) == ("crms_norm", "crms_norm", ["fold_scale"])
    assert site.refusal.code == "already_crms_norm"
    assert "crms_norm" in str(made.report)
    assert "already_crms_norm:" not in str(made.report)
