"""Real architectures with stored statistics: how many norms are left, why, and equal answers."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest
import torch

import normfuse
from tests.models.batch_norm_zoo import QUICK, ZOO, build, calibrate
from tests.models.test_transformers import compiled, distance

pytestmark = pytest.mark.rounding

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


#: From draw to draw the ratio of a tiny model scatters: few channels decide, and the worst of several outputs
#: counts (HGNet: 0.5 to 3.9 around 1.2). A systematic loss moves the median, and the median of few draws lies
#: above 1.5 by chance; then more of them decide.
DRAWS = (5, 15)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_no_further_from_float64_than_the_original(name: str, dtype: torch.dtype) -> None:
    """With statistics near those of the data, each draw with an input and a disturbance of its own."""
    ratios: list[float] = []
    for draws in DRAWS if dtype == torch.float32 else (1,):
        ratios += [ratio(name, dtype, draw) for draw in range(len(ratios), draws)]
        if median(ratios) <= 1.5:
            return
    pytest.fail(f"median {median(ratios)} of {ratios}")


def ratio(name: str, dtype: torch.dtype, draw: int) -> float:
    calibrated, x = build(name)
    torch.manual_seed(draw)
    calibrate(calibrated, x := torch.randn_like(x))
    model, _ = build(name, dtype)
    model.load_state_dict(calibrated.state_dict())
    torch.compiler.reset()
    with torch.no_grad():
        return normfuse.verify(model, compiled(model), (x.to(dtype),)).error_ratio


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet", "mobilenet_v2", "mobilevit"])
def test_statistics_far_from_the_data(name: str) -> None:
    """Where every channel is nearly constant, one rounding at its size is all that the original loses."""
    model, x = build(name, torch.float32)
    with torch.no_grad():
        assert normfuse.verify(model, compiled(model), (x,)).error_ratio <= 1.5
