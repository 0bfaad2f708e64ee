"""Numerics classes are checked, not believed; each check can fail."""

from __future__ import annotations

import pytest
import torch

from normfuse.passes.catalogue import RULES
from normfuse.passes.rule import Numerics
from normfuse.rule_names import RULE_NAMES
from normfuse.verify.numerics import ROUNDING_BOUND, judge_where_finite, keeps_class, same_bits

X = torch.randn(64, generator=torch.Generator().manual_seed(0))


def test_every_rule_is_in_the_catalogue_with_its_class_and_conditions():
    assert tuple(rule.name for rule in RULES) == RULE_NAMES
    for rule in RULES:
        assert rule.equation
        assert rule.conditions
        assert rule.source or rule.numerics is Numerics.BITWISE


def test_bitwise():
    assert keeps_class(Numerics.BITWISE, X, X.clone(), X.double())
    assert not keeps_class(Numerics.BITWISE, X, X.nextafter(torch.tensor(9.0)), X.double())
    with_nan = X.clone()
    with_nan[3] = float("nan")
    assert same_bits(with_nan, with_nan.clone())
    assert not same_bits(with_nan, X)
    assert not same_bits(X, X.double())
    assert not same_bits(X, X.view(8, 8))


def test_rounding():
    step = torch.finfo(torch.float32).eps * float(X.abs().max())
    assert keeps_class(Numerics.ROUNDING, X, X + (ROUNDING_BOUND - 1) * step, X.double())
    assert not keeps_class(Numerics.ROUNDING, X, X + (ROUNDING_BOUND + 1) * step, X.double())
    broken = X.clone()
    broken[0] = float("inf")
    assert not keeps_class(Numerics.ROUNDING, X, broken, X.double())
    assert keeps_class(Numerics.ROUNDING, X[:0], X[:0], X[:0].double())
    assert not keeps_class(Numerics.ROUNDING, torch.tensor([1]), torch.tensor([2]), torch.tensor([1]))


def test_reassociated():
    oracle = X.double()
    reference = X * (1 + 1e-6)
    assert keeps_class(Numerics.REASSOCIATED, reference, X * (1 - 1e-6), oracle)
    assert not keeps_class(Numerics.REASSOCIATED, reference, X * (1 + 1e-5), oracle)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_the_original_does_not_compute_is_not_judged(bad):
    reference, oracle = X.clone(), X.double()
    reference[5] = bad
    assert judge_where_finite("x", reference, X, oracle).ok
    broken = reference.clone()
    broken[6] = float("nan")
    assert not judge_where_finite("x", reference, broken, oracle).ok
