"""Every rule that changes numbers has a proof, every proof holds, and what is false is not proven."""

from __future__ import annotations

import pytest
import sympy
from sympy import Matrix

from normfuse.passes.catalogue import CATALOGUE, RULES
from normfuse.passes.rule import Claim, Numerics
from tests.proofs import identities
from tests.proofs.identities import (
    PROOFS,
    bounded,
    centre,
    crms_norm,
    eps,
    holds,
    larger,
    layer_norm,
    pairs,
    rms_norm,
    symbols,
    zero_mean,
    zero_mean_basis,
)
from tests.proofs.stored import Stored, conv, conv_transpose, standardised

ALL = [pytest.param(f, id=f"{rule}-{f.__name__}") for rule, found in PROOFS.items() for f in found]
H, Z = symbols("h", 3), symbols("z", 2)
U, GAIN = zero_mean_basis(3), sympy.Rational(3, 2)
W, X, A, B = symbols("W", 2, 2), symbols("x", 2, 3), symbols("a", 2), symbols("b", 2)


def unproven():
    return {n for n, r in CATALOGUE.items() if r.numerics is not Numerics.BITWISE} - set(PROOFS)


#: Convolutions at width 3 take sympy seconds each.
EACH = [
    pytest.param(
        width, *one.values, id=f"{width}-{one.id}",
        marks=[pytest.mark.slow] if width == 3 and str(one.id).startswith("fold_affine") else [],
    )
    for width in (2, 3)
    for one in ALL
]  # fmt: skip


@pytest.mark.parametrize(("width", "function"), EACH)
def test_the_identity_holds(width, function):
    assert holds(function(width))


def test_every_rule_that_changes_numbers_has_a_proof(monkeypatch):
    assert unproven() == set()
    monkeypatch.setitem(CATALOGUE, "guess", Claim("guess", Numerics.ROUNDING, "x = y"))
    assert unproven() == {"guess"}


def test_every_proof_is_about_a_rule_and_every_rule_is_one_that_can_be_switched_off():
    assert set(PROOFS) <= set(CATALOGUE)
    assert {rule.name for rule in RULES} <= set(PROOFS)


@pytest.mark.parametrize(
    "wrong",
    [
        pairs(layer_norm(H), rms_norm(H)),
        pairs(layer_norm(H), rms_norm(centre(3) * H, eps * sympy.Rational(3, 2))),
        pairs(layer_norm(H), rms_norm(centre(3) * H, sympy.Integer(0))),
        pairs(layer_norm(2 * H), layer_norm(H)),
        [(sum(e**2 for e in H) / 3 - sum(H) ** 2, sum((e - sum(H) / 3) ** 2 for e in H) / 3)],
        [(sum(e**2 for e in H) + sum(H) ** 2 / 3, sum((e - sum(H) / 3) ** 2 for e in H))],
        pairs(centre(3) * sympy.diag(*symbols("s", 3)), sympy.diag(*symbols("s", 3)) * centre(3)),
        pairs(rms_norm(zero_mean(Z))[:-1], rms_norm(Z)),
        pairs(rms_norm(zero_mean(Z))[:-1], crms_norm(Z, eps * sympy.Rational(3, 2))),
        pairs(rms_norm(Matrix([sum(Z), *Z]))[:-1], crms_norm(Z)),
        pairs(U.T * Matrix(rms_norm(zero_mean(Z))), rms_norm(U.T * zero_mean(Z), eps * GAIN)),
        pairs(
            U.T * Matrix(rms_norm(zero_mean(Z))),
            [sympy.sqrt(GAIN) * e for e in rms_norm(U.T * zero_mean(Z))],
        ),
        pairs(W * zero_mean(Z[:1, :]), W[:, :-1] * Z[:1, :]),
        pairs(
            W * (A.multiply_elementwise(Matrix(rms_norm(B))) + B),
            W * sympy.diag(*A) * Matrix(rms_norm(B)) + B,
        ),
        pairs(rms_norm(2 * B), rms_norm(B, eps / 2)),
        pairs(rms_norm(-2 * B), rms_norm(B, eps / 4)),
        pairs(layer_norm(2 * A + B), layer_norm(A + B, eps / 4)),
        pairs(bounded(2 * B, eps, larger), bounded(B, eps / 4, larger)),
        pairs(2 * (Matrix(rms_norm(B)) + A), 2 * Matrix(rms_norm(B)) + A),
        pairs(W * A.multiply_elementwise(Matrix(rms_norm(B))), sympy.diag(*A) * W * Matrix(rms_norm(B))),
        [],
    ],
    ids=[
        "mean kept",
        "eps of d-1",
        "eps lost",
        "scale ignored",
        "sum for mean",
        "moments added",
        "factor moved past C",
        "last coordinate forgotten",
        "eps of d - 1 where nothing is rotated",
        "the sum in front",
        "no gain",
        "eps kept in an orthonormal basis",
        "last column forgotten",
        "bias of a norm not multiplied",
        "eps over the factor",
        "sign lost",
        "what is added is not divided",
        "eps over the square outside of a root",
        "bias not multiplied",
        "weight of a norm on the rows",
        "nothing",
    ],
)
def test_what_is_false_is_not_proven(wrong):
    assert not holds(wrong)


NORM, SKIP = Stored(2), Stored(2, skip=True)
TAPS = [symbols(f"W{k}", 2, 2) for k in range(3)]


def _behind(norm, padding):
    """What would hold if zeros around the input were normalized, too."""
    folded = [tap * norm.factor for tap in TAPS]
    shifted = B + sum(TAPS, sympy.zeros(2, 2)) * norm.of_zero
    return pairs(conv(TAPS, norm(X), B, padding), conv(folded, X, shifted, padding))


def _transposed(norm):
    folded = [tap * norm.factor for tap in TAPS]
    shifted = B + sum(TAPS, sympy.zeros(2, 2)) * norm.of_zero
    return pairs(conv_transpose(TAPS, norm(X), B), conv_transpose(folded, X, shifted))


@pytest.mark.parametrize(
    "wrong",
    [
        pairs(NORM(W * A + B), Stored(2, added=sympy.Integer(0)).factor * W * A + NORM(B)),
        pairs(NORM(W * A + B), NORM.factor * W * A + B),
        pairs(NORM(W * A + B), NORM.factor * W * A + NORM.of_zero),
        pairs(NORM(W * A + B), W * NORM.factor * A + NORM(B)),
        pairs(NORM(2 * A + B), NORM(A) + NORM(A + B)),
        pairs(W * NORM(A) + B, NORM.factor * W * A + (B + W * NORM.of_zero)),
        pairs(W * NORM(A) + B, W * NORM.factor * A + B),
        _behind(NORM, 1),
        _transposed(NORM),
        pairs(SKIP(W * A + B), SKIP.factor * W * A + NORM(B)),
        pairs(SKIP(W * A + B), NORM.factor * W * A + SKIP(B)),
        pairs(NORM(NORM(W * A + B)), NORM.factor * NORM.factor * W * A + NORM(B)),
        pairs(NORM(A) + W * A + B, (NORM.factor + W) * A + B),
        pairs(NORM(X) + conv(TAPS, X, B, 1), conv([t + NORM.factor for t in TAPS], X, B + NORM.of_zero, 1)),
        pairs(NORM(W * A + A + B), (NORM.factor * W + sympy.eye(2)) * A + NORM(B)),
        pairs(2 * (W * A + B) + NORM(A), 2 * ((W + NORM.factor) * A + (B + NORM.of_zero))),
        pairs(standardised(W) * A, standardised(W, eps * 2) * A),
        pairs(standardised(W.T).T * A, standardised(W) * A),
    ],
    ids=[
        "eps lost", "bias not normed", "bias lost", "factor on the wrong side", "shift in every writer",
        "factor on the rows of a reader", "shift lost behind", "zeros normed", "zeros normed, transposed",
        "no alpha b", "no alpha W", "outer norm of the bias lost", "shift lost beside", "every tap",
        "own input not normed", "beside what is multiplied",
        "other eps in a weight", "other axis of a weight",
    ],
)  # fmt: skip
def test_what_is_false_of_stored_statistics_is_not_proven(wrong):
    assert not holds(wrong)


def test_without_a_shift_zeros_may_be_normed():
    """The two refused above hold when nothing is added: what is refused is the shift."""
    norm = Stored(2)
    norm.shift, norm.mean = sympy.zeros(2, 1), sympy.zeros(2, 1)
    assert holds(_behind(norm, 1))
    assert holds(_transposed(norm))
    assert holds(_behind(NORM, 0))


def test_the_definitions_of_stored_statistics_are_those_of_torch():
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1  # noqa: E731
    norm = Stored(2)
    taps, x, b = draw(2, 2, 3), draw(2, 4), draw(2)
    given = {"scale": draw(2), "shift": draw(2), "mean": draw(2), "variance": draw(2)}
    held = {eps: 1e-2}
    for name, values in given.items():
        held |= {s: float(v) for s, v in zip(getattr(norm, name), values, strict=True)}
    matrices = [sympy.Matrix(taps[:, :, k].tolist()) for k in range(3)]
    ours_of = {
        "norm": norm(sympy.Matrix(x.tolist())).subs(held),
        "conv": conv(matrices, sympy.Matrix(x.tolist()), sympy.Matrix(b.tolist()), 1),
        "transposed": conv_transpose(matrices, sympy.Matrix(x.tolist()), sympy.Matrix(b.tolist()), 2),
        "weight": standardised(sympy.Matrix(x.tolist()), sympy.Float(1e-2)),
    }
    g = given
    theirs_of = {
        "norm": F.batch_norm(x[None], g["mean"], g["variance"], g["scale"], g["shift"], False, 0.0, 1e-2)[0],
        "conv": F.conv1d(x[None], taps, b, padding=1)[0],
        "transposed": F.conv_transpose1d(x[None], taps.transpose(0, 1), b, stride=2)[0],
        "weight": F.layer_norm(x, (4,), eps=1e-2),
    }
    for name, theirs in theirs_of.items():
        found = torch.tensor(ours_of[name].tolist(), dtype=torch.float64)
        torch.testing.assert_close(found, theirs, rtol=1e-13, atol=1e-13)


def test_the_definitions_are_those_of_torch():
    import torch
    import torch.nn.functional as F

    values = torch.tensor([0.3, -1.2, 2.5], dtype=torch.float64)
    numbers = {s: float(v) for s, v in zip([*H, *Z], [*values, *values[:2]], strict=True)} | {eps: 1e-2}
    whole = torch.cat([values[:2], -values[:2].sum(0, keepdim=True)])
    for ours, theirs in (
        (layer_norm(H), F.layer_norm(values, (3,), eps=1e-2)),
        (rms_norm(H), F.rms_norm(values, (3,), eps=1e-2)),
        (crms_norm(Z), F.rms_norm(whole, (3,), eps=1e-2)[:2]),
    ):
        found = torch.tensor([float(e.subs(numbers)) for e in ours], dtype=torch.float64)
        torch.testing.assert_close(found, theirs, rtol=1e-14, atol=1e-14)
    assert identities.eps.is_positive
