"""Real architectures with stored statistics: how many norms are left, why, and equal answers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import normfuse
from tests.models.batch_norm_zoo import QUICK, ZOO, build, calibrate
from tests.models.test_transformers import compiled, distance

NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(ZOO)]


@pytest.mark.parametrize("name", NAMES)
def test_outcome_and_equality_in_float64(name: str) -> None:
    entry = ZOO[name]
    model, x = build(name)
    with torch.no_grad():
        assert distance(model(x), compiled(model)(x)) <= 1e-12
    sites = [s for s in normfuse.last_report().sites if s.kind == entry.kind]
    left = Counter(s.refusal.code for s in sites if s.refusal is not None)
    assert (len(sites), dict(left)) == (entry.found, entry.left)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_rewritten_program_in_float64(name: str) -> None:
    model, x = build(name)
    with torch.no_grad():
        assert distance(model(x), normfuse.rewrite(model, (x,)).module()(x)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_no_further_from_float64_than_the_original(name: str, dtype: torch.dtype) -> None:
    """Statistics far from what a norm reads leave channels constant, where the order of a sum decides."""
    calibrated, x = build(name)
    calibrate(calibrated, x)
    model, x = build(name, dtype)
    model.load_state_dict(calibrated.state_dict())
    with torch.no_grad():
        result = normfuse.verify(model, compiled(model), (x,))
    assert result.ok, str(result)
    assert result.error_ratio <= 1.5
