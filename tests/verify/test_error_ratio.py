"""error_ratio and its floor, non-finite elements, extreme magnitudes, and the verdict on a leaf."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normfuse.errors import VerificationError
from normfuse.verify import Equivalence, error_ratio
from normfuse.verify.judge import _allowed, judge

EPS32 = torch.finfo(torch.float32).eps


def oracle(n: int = 64) -> Tensor:
    return torch.linspace(1, 2, n, dtype=torch.float64) + 1e-12


def off(target: Tensor, relative: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return (target * (1 + relative)).to(dtype)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.4, 3.0])
def test_ratio_of_errors(factor: float) -> None:
    o = oracle()
    # Errors of 2**-12 dwarf the rounding to float32 (2**-24), so the ratio is right to 2**-11.
    assert error_ratio(off(o, 2**-12), off(o, factor * 2**-12), o) == pytest.approx(factor, rel=2**-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_lucky_reference_counts_as_one_ulp(dtype: torch.dtype) -> None:
    o = torch.ones(8, dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert error_ratio(o.to(dtype), (o + 2 * eps).to(dtype), o) == pytest.approx(2.0)


def test_zero_over_zero_is_zero_and_missing_a_zero_is_huge() -> None:
    zero = torch.zeros(4)
    assert error_ratio(zero, zero, zero.double()) == 0.0
    assert error_ratio(zero, zero + 1e-6, zero.double()) > 1e30
    assert error_ratio(torch.empty(0), torch.empty(0), torch.empty(0).double()) == 0.0


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_extreme_magnitudes(scale: float) -> None:
    o = oracle() * scale
    assert error_ratio(off(o, 0.01), off(o, 0.03), o) == pytest.approx(3, rel=1e-2)


def test_float64_norms_neither_overflow_nor_vanish() -> None:
    for scale in (1e300, 1e-300):
        o = oracle() * scale
        found = error_ratio(off(o, 1e-6, torch.float64), off(o, 2e-6, torch.float64), o)
        assert found == pytest.approx(2, rel=1e-6)


def test_only_finite_elements_count_and_have_to_be_finite_in_the_same_places() -> None:
    o = oracle(4)
    reference, candidate = off(o, 2**-12), off(o, 2**-11)
    reference[0], candidate[0] = math.inf, math.nan
    assert error_ratio(reference, candidate, o) == pytest.approx(2, rel=2**-9)
    assert error_ratio(reference, off(o, 2**-11), o) == math.inf
    assert error_ratio(off(o, 2**-12), candidate, o) == math.inf


def test_complex_errors_have_both_parts() -> None:
    o = torch.complex(oracle(), oracle())
    r, c = (o + 2**-12 * 1j).to(torch.complex64), (o + 2**-11).to(torch.complex64)
    assert error_ratio(r, c, o) == pytest.approx(2, rel=2**-9)


def test_the_figures_of_a_leaf_are_against_the_oracle() -> None:
    o = torch.tensor([1.0, -4.0], dtype=torch.float64)
    leaf = judge("leaf", torch.tensor([1.5, -4.0]), torch.tensor([1.0, -3.5]), o)
    assert (leaf.max_abs_error, leaf.max_rel_error) == (0.5, 0.125)
    assert leaf.error_ratio == pytest.approx(1.0)
    assert (leaf.dtype, leaf.shape) == (torch.float32, (2,))


@pytest.mark.parametrize(("factor", "ok"), [(1.49, True), (2.15, True), (2.25, False)])
def test_the_budget(factor: float, ok: bool) -> None:
    """1.5 * exp(3 * 0.126): three standard deviations for the 64 numbers of this leaf."""
    o = oracle()
    assert o.numel() == 64
    leaf = judge("leaf", off(o, 2**-12), off(o, factor * 2**-12), o)
    assert leaf.judged
    assert leaf.ok is ok


@pytest.mark.parametrize(("relative", "ok"), [(0.9e-12, True), (1e-12, False)])
def test_float64_is_bounded_by_its_distance_to_the_reference(relative: float, ok: bool) -> None:
    o = oracle()
    assert judge("leaf", o, o * (1 + relative), o).ok is ok


def test_float64_with_float32_inside_is_judged_by_its_ratio() -> None:
    o = oracle()
    reference = o * (1 + EPS32)
    assert judge("leaf", reference, o * (1 - EPS32), o).ok
    assert not judge("leaf", reference, o * (1 - 2.5 * EPS32), o).ok


def test_a_hopeless_reference_judges_nothing_but_finiteness() -> None:
    o = oracle()
    reference = off(o, 0.2)
    leaf = judge("leaf", reference, off(o, 5.0), o)
    assert (leaf.judged, leaf.ok) == (False, True)
    nan = torch.full_like(reference, math.nan)
    assert not judge("leaf", reference, nan, o).ok
    assert judge("leaf", off(o, 0.05), off(o, 5.0), o).judged
    overall = Equivalence.of([leaf, judge("other", off(o, 1e-3), off(o, 1e-3), o)])
    assert overall.error_ratio == pytest.approx(1)


def test_a_reference_that_is_nowhere_finite_is_not_judged() -> None:
    nan = torch.full((4,), math.nan)
    assert not judge("leaf", nan, nan, nan.double()).judged
    failed = judge("leaf", nan, torch.zeros(4), nan.double())
    assert (failed.judged, failed.ok, failed.error_ratio) == (True, False, math.inf)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_exact_dtypes_have_to_be_equal(dtype: torch.dtype) -> None:
    r = torch.tensor([0, 1, 1]).to(dtype)
    c = torch.tensor([0, 1, 0]).to(dtype)
    assert judge("leaf", r, r.clone(), r).ok
    leaf = judge("leaf", r, c, r)
    assert (leaf.ok, leaf.judged, leaf.error_ratio, leaf.max_abs_error) == (False, True, math.inf, 1.0)


def test_different_shapes_and_dtypes_are_errors_that_name_the_leaf() -> None:
    with pytest.raises(VerificationError, match=r"output\.x has shape"):
        judge("output.x", torch.zeros(2), torch.zeros(3), torch.zeros(2).double())
    with pytest.raises(VerificationError, match=r"output\.x has dtype torch\.float32 in the reference"):
        judge("output.x", torch.zeros(2), torch.zeros(2).half(), torch.zeros(2).double())


def test_an_equivalence_reads_well() -> None:
    o = oracle()
    leaves = [judge(f"output[{i}]", off(o, 1e-3), off(o, 1e-3), o) for i in range(30)]
    bad = judge("output.bad", off(o, 1e-3), off(o, 1e-2), o)
    hopeless = judge("output.hopeless", off(o, 0.5), off(o, 0.5), o)
    result = Equivalence.of([*leaves, bad, hopeless])
    text = str(result)
    assert "NOT equivalent: worst error ratio 10" in text
    assert "32 leaves, 1 not judged, the best 12 not shown" in " ".join(text.split())
    first_row = next(line for line in text.splitlines() if "output" in line)
    assert "output.bad" in first_row
    assert "FAILED" in first_row
    assert max(map(len, text.splitlines())) <= 110
    assert not result
    as_dict = result.to_dict()
    assert as_dict["leaves"][30] == {
        "path": "output.bad",
        "dtype": "float32",
        "shape": [64],
        "max_abs_error": bad.max_abs_error,
        "max_rel_error": bad.max_rel_error,
        "error_ratio": bad.error_ratio,
        "judged": True,
        "ok": False,
        "allowed": bad.allowed,
        "reason": "",
    }
    assert as_dict["unjudged"] == ["output.hopeless"]
    assert f"10 ({bad.allowed:.3g} allowed)" in text
    assert as_dict["error_ratio"] == result.error_ratio == bad.error_ratio


@pytest.mark.parametrize(("count", "allowed"), [(1, 167.0), (10, 4.1), (64, 2.19), (10_000, 1.546)])
def test_the_budget_for_few_numbers_is_a_quantile(count: int, allowed: float) -> None:
    """Among random errors of n numbers each, one ratio in a thousand or fewer exceeds it by chance alone."""
    generator = torch.Generator().manual_seed(0)
    draws = 40_000 if count <= 64 else 400
    a, b = (torch.randn(draws, count, dtype=torch.float64, generator=generator).norm(dim=1) for _ in range(2))
    assert math.isclose(_allowed(count), allowed, rel_tol=0.01)
    exceeding = float((a / b * 1.5 > _allowed(count)).double().mean())
    assert exceeding <= 0.008


def test_what_is_there_twice_counts_once() -> None:
    """Sixteen equal rows: the error of the original may be next to nothing in all of them."""
    o = torch.ones(16, 1, dtype=torch.float64)
    candidate = (o * (1 + 2.0**-21)).float()
    assert judge("leaf", o.float(), candidate, o).error_ratio > 3
    assert judge("leaf", o.float(), candidate, o).ok
    other = o + torch.arange(16).double()[:, None]
    assert not judge("leaf", other.float(), (other * (1 + 2.0**-20)).float(), other).ok


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [("nan", "inf"), ("inf", "-inf"), ("-inf", "nan")],
)
def test_infinities_and_nan_are_told_apart_where_they_are_meant(reference: str, candidate: str) -> None:
    meant = torch.tensor([1.0, float(reference)])
    assert judge("leaf", meant, meant.clone(), meant.double()).ok
    assert not judge("leaf", meant, torch.tensor([1.0, float(candidate)]), meant.double()).ok
    overflow = torch.tensor([1.0, 1e300], dtype=torch.float64)
    assert judge("leaf", meant, torch.tensor([1.0, float(candidate)]), overflow).ok
