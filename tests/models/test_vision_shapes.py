"""Vision networks: how many batch norms are left, why, and that the answers stay the same."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest
import torch

import normfuse
from tests.models.test_transformers import compiled, distance
from tests.models.vision_shapes import SHAPES, build

pytestmark = pytest.mark.rounding

NAMES = sorted(SHAPES)
#: At most; one is enough where it lies within the budget.
DRAWS = 9


@pytest.mark.parametrize("name", NAMES)
def test_outcome_under_compile_and_equality_in_float64(name: str) -> None:
    model, x = build(name)
    with torch.no_grad():
        assert distance(model(x), compiled(model)(x)) <= 1e-12
    sites = [s for s in normfuse.last_report().sites if s.kind == "batch_norm"]
    left = Counter(s.refusal.code for s in sites if s.refusal is not None)
    assert (len(sites), dict(left)) == (SHAPES[name].found, SHAPES[name].left)


@pytest.mark.parametrize("name", NAMES)
def test_rewritten_program_in_float64(name: str) -> None:
    model, x = build(name)
    with torch.no_grad():
        assert distance(model(x), normfuse.rewrite(model, (x,)).module()(x)) <= 1e-12


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] if index % 2 == half else [])
        for index, name in enumerate(NAMES)
        for half, dtype in enumerate((torch.float32, torch.bfloat16))
    ],
)
def test_no_further_from_float64_than_the_original(name: str, dtype: torch.dtype) -> None:
    """The ratio of a tiny model scatters from draw to draw; a systematic loss moves the median."""
    model, x = build(name, dtype)
    fast = compiled(model)
    ratios: list[float] = []
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        given = torch.randn_like(x) if draw else x
        with torch.no_grad():
            ratios.append(normfuse.verify(model, fast, (given,)).error_ratio)
        if draw % 4 == 0 and median(ratios) <= 1.5:
            return
    pytest.fail(f"median {median(ratios)} of {ratios}")


@pytest.mark.parametrize(
    "name", ["resnet_basic", *(pytest.param(n, marks=pytest.mark.slow) for n in ("repvgg", "levit"))]
)
def test_gradients_with_the_statistics_fixed(name: str) -> None:
    """In evaluation with gradients the fold is part of the graph, and every parameter keeps its gradient."""
    model, x = build(name)
    fast = compiled(model, inner="aot_eager")
    grads = []
    for forward in (model, fast):
        model.zero_grad()
        forward(x).square().sum().backward()
        grads.append({k: p.grad.clone() for k, p in model.named_parameters()})
    assert distance(*grads) <= 1e-12
    report = normfuse.last_report()
    assert report.after.get("batch_norm", 0) == sum(SHAPES[name].left.values())


@pytest.mark.parametrize("dynamic", [False, True])
def test_further_shapes(dynamic: bool) -> None:
    model, _ = build("resnet_bottleneck")
    options = {"normfuse.inner": "eager"}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options, dynamic=dynamic)
    with torch.no_grad():
        for batch, size in ((4, 32), (2, 40), (7, 24)):
            image = torch.randn(batch, 3, size, size, dtype=torch.float64)
            assert distance(model(image), fast(image)) <= 1e-12
    assert "batch_norm" not in normfuse.last_report().after


def test_under_inductor() -> None:
    model, x = build("mobilenet", torch.float32)
    with torch.no_grad():
        result = normfuse.verify(model, torch.compile(model, backend=normfuse.normfuse_backend), (x,))
    assert result.ok, str(result)
    assert normfuse.last_report().after == {}


def test_channels_last() -> None:
    model, x = build("resnet_basic")
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert distance(model(x), compiled(model)(x)) <= 1e-12
    assert normfuse.last_report().after == {}
