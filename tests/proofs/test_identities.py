"""Every rule that changes numbers has a proof, every proof holds, and what is false is not proven."""

from __future__ import annotations

import pytest
import sympy

from normfuse.passes.catalogue import CATALOGUE, Numerics, Rule
from tests.proofs import identities
from tests.proofs.identities import PROOFS, centre, eps, holds, layer_norm, pairs, rms_norm, symbols

ALL = [pytest.param(f, id=f"{rule}-{f.__name__}") for rule, found in PROOFS.items() for f in found]
H = symbols("h", 3)


def unproven():
    return {n for n, r in CATALOGUE.items() if r.numerics is not Numerics.BITWISE} - set(PROOFS)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("width", [2, 3])
def test_the_identity_holds(function, width):
    assert holds(function(width))


def test_every_rule_that_changes_numbers_has_a_proof(monkeypatch):
    assert unproven() == set()
    monkeypatch.setitem(CATALOGUE, "guess", Rule("guess", Numerics.ROUNDING, "x = y"))
    assert unproven() == {"guess"}


def test_every_proof_is_about_a_rule():
    assert set(PROOFS) <= set(CATALOGUE)


@pytest.mark.parametrize(
    "wrong",
    [
        pairs(layer_norm(H), rms_norm(H)),
        pairs(layer_norm(H), rms_norm(centre(3) * H, eps * sympy.Rational(3, 2))),
        pairs(layer_norm(H), rms_norm(centre(3) * H, sympy.Integer(0))),
        pairs(layer_norm(2 * H), layer_norm(H)),
        pairs(centre(3) * sympy.diag(*symbols("s", 3)), sympy.diag(*symbols("s", 3)) * centre(3)),
        [],
    ],
    ids=["mean kept", "eps of d-1", "eps lost", "scale ignored", "factor moved past C", "nothing"],
)
def test_what_is_false_is_not_proven(wrong):
    assert not holds(wrong)


def test_the_definitions_are_those_of_torch():
    import torch
    import torch.nn.functional as F

    values = torch.tensor([0.3, -1.2, 2.5], dtype=torch.float64)
    numbers = {s: float(v) for s, v in zip(list(H), values, strict=True)} | {eps: 1e-2}
    for ours, theirs in (
        (layer_norm(H), F.layer_norm(values, (3,), eps=1e-2)),
        (rms_norm(H), F.rms_norm(values, (3,), eps=1e-2)),
    ):
        found = torch.tensor([float(e.subs(numbers)) for e in ours], dtype=torch.float64)
        torch.testing.assert_close(found, theirs, rtol=1e-14, atol=1e-14)
    assert identities.eps.is_positive
