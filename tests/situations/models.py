"""Models for the situations, and the comparison of a compiled model with the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import normfuse
from normfuse.report import Report

EAGER = {"normfuse.inner": "eager"}
CONVERT = {**EAGER, "normfuse.policy": "convert"}

#: Two float64 computations of the same function, each off by some hundred roundings of 1.1e-16.
EXACT = 1e-11


def fast(model: Any, **options: Any) -> Any:
    """The model, compiled for training or inference with every proven conversion."""
    settings = {key: options.pop(key) for key in ("dynamic", "fullgraph") if key in options}
    return torch.compile(model, backend="normfuse", options={**CONVERT, **options}, **settings)


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model and a copy of it that shares nothing."""
    return model, copy.deepcopy(model)


def report() -> Report:
    return normfuse.last_report()


def close(found: Any, wanted: Any, tolerance: float = EXACT) -> None:
    """Every tensor of one pytree is within a relative L2 distance of the other's."""
    ours, theirs = tree_leaves(found), tree_leaves(wanted)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        difference = float((a.double() - b.double()).norm())
        assert difference <= tolerance * float(b.double().norm()) + 1e-300, difference


def outputs(model: nn.Module, *args: Any, **options: Any) -> Report:
    """Compare one call in inference."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        close(fast(model, **options)(*args), reference(*args))
    return report()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.clone() for name, grad in found.items()}


def same_gradients(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-9) -> None:
    """Every gradient within ``tolerance`` of its norm, floored at 1e-6 of the whole."""
    found, wanted = gradients(ours), gradients(theirs)
    assert found.keys() == wanted.keys()
    assert found
    whole = float(torch.stack([g.double().norm() for g in wanted.values()]).norm())
    for name, grad in wanted.items():
        allowed = tolerance * max(float(grad.double().norm()), 1e-6 * whole)
        assert float((found[name].double() - grad.double()).norm()) <= allowed, name


def lay_out(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient reaches every parameter."""
    y = tree_leaves(model(x))[0]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return (y * weights).sum() + y.square().mean()


def same_training(
    model: nn.Module,
    x: torch.Tensor,
    steps: int = 3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **settings: Any,
) -> Report:
    """Train the compiled model and a copy of the model beside one another: gradients, losses, weights."""
    ours, theirs = pair(model)
    compiled = fast(ours)
    first = True
    chosen = {"lr": 1e-2, **settings}
    optimizers = [optimizer([p for p in m.parameters() if p.requires_grad], **chosen) for m in (ours, theirs)]
    for _ in range(steps):
        losses = []
        for run in (compiled, theirs):
            torch.manual_seed(7)
            losses.append(lay_out(run, x))
            losses[-1].backward()
        close(losses[0].detach(), losses[1].detach(), 1e-9)
        if first:
            same_gradients(ours, theirs)
        first = False
        for one in optimizers:
            one.step()
            one.zero_grad()
    close(dict(ours.state_dict()), dict(theirs.state_dict()), 1e-8)
    return report()
