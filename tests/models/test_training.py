"""Training real architectures with every proven conversion: gradients and losses follow eager's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import normfuse
from tests.models.zoo import ZOO, build
from tests.situations.models import same_gradients

CONVERTED = [n for n in sorted(ZOO) if ZOO[n].after != ZOO[n].found and ZOO[n].after.keys() == {"rms_norm"}]
EXACT = [n for n in CONVERTED if not ZOO[n].float32_inside]


def compiled(model: nn.Module, inner: str = "eager") -> Any:
    options = {"normfuse.inner": inner, "normfuse.policy": "convert"}
    return torch.compile(model, backend="normfuse", options=options)


def loss(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """A sum over all outputs in which every number has a weight of its own, of the size of one."""
    leaves = [y for y in tree_leaves(dict(run(*args, **kwargs))) if y.is_floating_point()]
    parts = [(y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).mean() for y in leaves]
    return torch.stack([part.double() for part in parts]).sum()


def differences(ours: nn.Module, theirs: nn.Module) -> list[float]:
    """Relative to each parameter's gradient, with a floor of 1e-6 of the whole gradient's norm."""
    pairs = [(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)]
    known = [(a, b) for a, b in pairs if b is not None]
    whole = float(torch.stack([b.norm() for _, b in known]).norm())
    return [float((a - b).norm()) / max(float(b.norm()), 1e-6 * whole) for a, b in known]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in {"beit", "blenderbot", "whisper"} else [])
        for n in EXACT
    ],
)
def test_gradients_in_float64(name: str) -> None:
    model, args, kwargs = build(name, torch.float64)
    reference = copy.deepcopy(model)
    loss(compiled(model), args, kwargs).backward()
    loss(reference, args, kwargs).backward()
    same_gradients(model, reference)
    report = normfuse.last_report()
    assert (report.after, report.folded) == (ZOO[name].after, 0)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("gpt2", torch.optim.AdamW),
        ("vit", torch.optim.SGD),
        pytest.param("gpt2", torch.optim.SGD, marks=pytest.mark.slow),
        pytest.param("vit", torch.optim.AdamW, marks=pytest.mark.slow),
    ],
)
def test_twenty_steps_follow_eager(name: str, optimizer: type[torch.optim.Optimizer]) -> None:
    model, args, kwargs = build(name, torch.float64)
    reference = copy.deepcopy(model)
    runs = [(compiled(model), model), (reference, reference)]
    optimizers = [optimizer(m.parameters(), lr=1e-3) for _, m in runs]  # type: ignore[call-arg]
    for _ in range(20):
        losses = []
        for (run, _m), one in zip(runs, optimizers, strict=True):
            losses.append(loss(run, args, kwargs))
            one.zero_grad()
            losses[-1].backward()
            one.step()
        assert abs(losses[0].item() - losses[1].item()) <= 1e-9 * max(1.0, abs(losses[1].item()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTED)
def test_gradients_under_inductor(name: str) -> None:
    """At most three times what Inductor alone differs from eager, or 1e-9."""
    model, args, kwargs = build(name, torch.float64)
    plain, reference = copy.deepcopy(model), copy.deepcopy(model)
    loss(reference, args, kwargs).backward()
    loss(torch.compile(plain), args, kwargs).backward()
    torch._dynamo.reset()
    loss(compiled(model, "inductor"), args, kwargs).backward()
    ours, theirs = differences(model, reference), differences(plain, reference)
    assert all(a <= max(1e-9, 3 * b) for a, b in zip(ours, theirs, strict=True))
