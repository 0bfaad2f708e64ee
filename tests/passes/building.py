"""Small networks around LayerNorms, and a comparison of what the rewriting makes of them.

Batch, tokens and channels have the same size, and every parameter has a large mean, so that a
wrong axis or a forgotten mean shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

import normfuse
from normfuse.report import Report

D, FEATURES = 6, 5
EXACT = 1e-12


class Net(nn.Module):
    """Two LayerNorms, two linears, whatever else is given; ``run(net, *args)`` is its forward."""

    def __init__(self, run: Callable[..., Any], extras: dict[str, Any]) -> None:
        super().__init__()
        self.ln, self.ln2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.lin, self.lin2 = nn.Linear(FEATURES, D), nn.Linear(FEATURES, D)
        for name, value in extras.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


@dataclass
class Attack:
    """A network that a careless analysis would get wrong.

    ``converted`` is the number of norms that must become RMSNorm, ``codes`` the reasons for the others;
    ``compiled`` is the number under ``torch.compile`` where that is another one with the tolerance that
    goes with it.
    """

    run: Callable[..., Any]
    extras: Callable[[], dict[str, Any]]
    converted: int
    codes: frozenset[str]
    args: Callable[[], tuple[Any, ...]]
    tolerance: float = EXACT
    compiled: int | None = None
    compiled_tolerance: float | None = None
    prepare: Callable[[Net], None] | None = None

    def model(self) -> Net:
        net = randomised(Net(self.run, self.extras()))
        if self.prepare is not None:
            self.prepare(net)
        return net


@dataclass
class Collection:
    """Attacks by name."""

    found: dict[str, Attack] = field(default_factory=dict)

    def __call__(
        self,
        converted: int,
        codes: str = "",
        args: Callable[[], tuple[Any, ...]] | None = None,
        extras: Callable[[], dict[str, Any]] = dict,
        **settings: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            made = Attack(run, extras, converted, frozenset(codes.split()), args or inputs, **settings)
            assert run.__name__ not in self.found
            self.found[run.__name__] = made
            return run

        return register


def param(*shape: int, **kwargs: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape, **kwargs))


def normal(*shape: int, mean: float = 1.0, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def inputs() -> tuple[Any, ...]:
    return (normal(D, D, FEATURES),)


def randomised(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, and every floating weight random with mean 3."""
    model.double().eval()
    generator = torch.Generator().manual_seed(0)
    done: set[int] = set()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.untyped_storage().data_ptr() not in done:
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) + 3)
                done.add(value.untyped_storage().data_ptr())
    return model


def evaluate(model: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """The outputs for fresh copies of the arguments, and those copies as the call left them."""
    given = tree_map_only(torch.Tensor, torch.clone, args)
    torch.manual_seed(5)
    with torch.no_grad():
        result = model(*given)
    return tree_leaves((result, given))


def distance(found: list[Any], wanted: list[Any]) -> float:
    """The largest relative L2 difference."""
    assert len(found) == len(wanted)
    return max((_relative(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)


def _relative(a: Any, b: Any) -> float:
    if not isinstance(b, torch.Tensor):
        return float(a != b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert a.stride() == b.stride()
    if b.numel() == 0 or torch.equal(a, b):
        return 0.0
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300)) if a.isfinite().all() else float("inf")


def rewritten(model: nn.Module, args: tuple[Any, ...], **options: Any) -> tuple[float, Report]:
    """How far the rewritten model is from the model, and the report."""
    wanted = evaluate(copy.deepcopy(model), args)
    given = tree_map_only(torch.Tensor, torch.clone, args)
    made = normfuse.rewrite(model, given, **{"verify": "off", **options})
    return distance(evaluate(made.module(), args), wanted), made.report


def compiled(model: nn.Module, args: tuple[Any, ...], **settings: Any) -> tuple[float, Report]:
    """The same for the compiled model, called twice."""
    reference = copy.deepcopy(model)
    options = {"normfuse.inner": "eager"}
    fast = torch.compile(model, backend=normfuse.normfuse_backend, options=options, **settings)
    found = max(distance(evaluate(fast, args), evaluate(reference, args)) for _ in range(2))
    return found, normfuse.last_report()


def outcome(report: Report) -> tuple[int, set[str]]:
    """How many norms were converted, and the reasons for the other LayerNorms.

    A rule that had to be undone is a failure: verification must not hide it.
    """
    layer_norms = [s for s in report.sites if s.kind == "layer_norm"]
    kept = [s for s in layer_norms if s.becomes == s.kind]
    assert "reverted" not in {s.action for s in report.sites}
    assert all(s.refusal is not None and s.refusal.message for s in kept)
    return len(layer_norms) - len(kept), {s.refusal.code for s in kept if s.refusal is not None}
