"""What keeps gradients from flowing still does, with every conversion that is allowed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.passes.building import D, randomised

FORWARDS: dict[str, Callable[..., Any]] = {}


class Net(nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.ln = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)
        self.conv, self.other = nn.Conv1d(D, D, 1), nn.Conv1d(D, D, 3, padding=1)
        self.bn, self.g, self.run = nn.BatchNorm1d(D), nn.Parameter(torch.zeros(D)), run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def forward(run: Callable[..., Any]) -> Callable[..., Any]:
    FORWARDS[run.__name__] = run
    return run


@forward
def a_factor_behind_detach(s, x):
    return s.ln(s.a(x).detach() * s.g + s.b(x))


@forward
def a_detached_factor(s, x):
    return s.ln(s.a(x) * s.g.detach() + s.b(x))


@forward
def a_norm_of_a_detached_value(s, x):
    return torch.relu(s.bn(s.conv(x).detach()))


@forward
def a_norm_that_is_detached(s, x):
    return s.conv(s.bn(torch.relu(x)).detach())


@forward
def a_factor_without_gradients(s, x):
    h = s.a(x)
    with torch.no_grad():
        y = h * s.g
    return s.ln(y + s.b(x))


@forward
def a_factor_in_inference_mode(s, x):
    h = s.a(x)
    with torch.inference_mode():
        y = h * s.g
    return s.ln(y.clone() + s.b(x))


@forward
def a_writer_without_gradients(s, x):
    with torch.no_grad():
        h = s.conv(x)
    return torch.relu(s.bn(h))


@forward
def a_norm_without_gradients(s, x):
    with torch.no_grad():
        h = s.bn(torch.relu(x))
    return s.conv(h)


@forward
def a_weight_beside_it_without_gradients(s, x):
    with torch.no_grad():
        h = s.other(x)
    return torch.relu(h + s.bn(x))


@forward
def statistics_without_gradients(s, x):
    h = s.a(x)
    with torch.no_grad():
        mean = h.mean(-1, keepdim=True)
        rstd = torch.rsqrt((h - mean).pow(2).mean(-1, keepdim=True) + 1e-5)
    return s.b((h - mean) * rstd)


@forward
def all_of_it_with_gradients(s, x):
    return s.ln(s.a(x) * s.g + s.b(x)) + s.conv(s.bn(torch.relu(x))) + s.bn(s.other(x))


def gradients(run: Callable[..., Any], model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    given = x.clone().requires_grad_()
    made = run(given)
    if made.requires_grad:
        (made * torch.linspace(-1, 1, made.numel(), dtype=made.dtype).view(made.shape)).sum().backward()
    return {"x": given.grad, **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("name", FORWARDS)
def test_gradients_are_those_of_the_model(name: str) -> None:
    """1e-12: sums of 6 * 6 * 6 products in float64 (2.4e-14), and derivatives of up to three norms."""
    model = randomised(Net(FORWARDS[name]))
    reference, x = copy.deepcopy(model), torch.randn(D, D, D, dtype=torch.float64) + 1
    options = {"normfuse.inner": "aot_eager", "normfuse.policy": "convert"}
    found = gradients(torch.compile(model, backend="normfuse", options=options), model, x)
    wanted = gradients(reference, reference, x)
    assert {n for n, g in found.items() if g is not None} == {n for n, g in wanted.items() if g is not None}
    whole = max(float(g.norm()) for g in wanted.values() if g is not None)
    for key, grad in wanted.items():
        if grad is not None:
            assert float((found[key] - grad).norm()) <= 1e-12 * max(float(grad.norm()), 1e-6 * whole), key
