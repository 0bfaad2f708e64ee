"""What stands around a compiled model: hooks, other modes, optimizers at work, models that come and go."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import normfuse
from normfuse.folding.store import living

D = 8
OPTIONS = {"normfuse.inner": "aot_eager", "normfuse.policy": "convert"}
X = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.f, self.h = nn.Linear(5, D), nn.Linear(D, D), nn.Linear(D, 3)
        self.n, self.m = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.e(x)
        y: torch.Tensor = self.h(self.m(x + self.f(self.n(x))))
        return y


def made(cls: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    return cls().double()


def fast(model: nn.Module) -> Any:
    return torch.compile(model, backend="normfuse", options=OPTIONS)


def close(found: Any, wanted: Any) -> None:
    """1e-12: some hundred roundings of 1.1e-16 each."""
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm())


def results(run: Callable[[Callable[..., Any], Net], Any], cls: type[Net] = Net) -> tuple[Any, Any]:
    """What a procedure gives with the compiled model, and with the model itself."""
    ours, theirs = made(cls), made(cls)
    return run(fast(ours), ours), run(theirs, theirs)


def gradients(y: torch.Tensor, model: Net) -> list[torch.Tensor]:
    y.square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


class RecordsItself(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            return super().forward(x)


def test_a_graph_that_switches_gradients_on_has_them() -> None:
    def run(call: Callable[..., Any], model: Net) -> Any:
        with torch.no_grad():
            y = call(X)
        return gradients(y, model)

    found, wanted = results(run, RecordsItself)
    assert len(found) == len(list(made().parameters()))
    close(found, wanted)


def test_checkpointing_a_compiled_model_compiles_it_unnoticed() -> None:
    close(*results(lambda call, model: gradients(checkpoint(call, X, use_reentrant=False), model)))


def test_the_capture_hands_nothing_to_the_hooks_of_the_caller() -> None:
    def run(call: Callable[..., Any], model: Net) -> Any:
        def pack(saved: torch.Tensor) -> Any:
            return saved.detach().numpy().copy()  # what is fake has no entries

        with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
            y = call(X)
        return gradients(y, model)

    close(*results(run))


class InFullPrecision(Net):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(D, 4)), nn.Parameter(torch.randn(4, D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.e(x)
            y: torch.Tensor = self.m(x + nn.functional.linear(self.n(x), torch.tanh(self.p @ self.q)))
            return y


def test_weights_are_folded_without_the_autocast_of_the_caller() -> None:
    """1e-5: float32 sums of 8 products; bfloat16 would be off by 4e-3."""
    model = made(InFullPrecision).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = fast(model)(X.float())
        wanted = copy.deepcopy(model).double()(X)
    assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_the_hooks_of_a_fused_optimizer_see_its_step() -> None:
    def run(call: Callable[..., Any], model: Net) -> Any:
        seen: list[torch.Tensor] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)

        def look(*_: Any) -> None:
            with torch.no_grad():
                seen.append(call(X))

        optimizer.register_step_post_hook(look)
        for _ in range(2):
            look()
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        return seen

    close(*results(run))


def test_new_weights_leave_what_autograd_saved() -> None:
    """The gradient of an ensemble of frozen checkpoints with respect to its input."""

    def run(call: Callable[..., Any], model: Net) -> Any:
        model.requires_grad_(False)
        x, outputs = X.clone().requires_grad_(), []
        for _ in range(3):
            outputs.append(call(x))
            state = {name: value * 1.3 for name, value in model.state_dict().items()}
            model.load_state_dict(state, assign=True)
            model.requires_grad_(False)
        return torch.autograd.grad(sum(y.square().sum() for y in outputs), x)

    close(*results(run))


def test_folded_weights_go_with_their_model() -> None:
    model = made()
    call = fast(model)
    with torch.no_grad():
        call(X)
    held = [weakref.ref(folded.tensor) for folded in living() if folded.refolds == 0]
    assert held
    del model, call
    gc.collect()
    assert [tensor() for tensor in held] == [None] * len(held)


def test_every_model_that_a_compiled_function_was_called_with_is_let_go() -> None:
    gc.collect()  # models of other tests may be on their way out
    before = len(living())
    call = fast(lambda model, x: model(x))
    models = [made() for _ in range(3)]
    with torch.no_grad():
        for model in models:
            call(model, X)
    assert normfuse.last_report().folded == 6
    assert len(living()) == before + 3 * 6
    sources = [weakref.ref(p) for model in models for p in model.parameters()]
    del model, models
    gc.collect()
    assert [source() for source in sources] == [None] * len(sources)
    assert len(living()) == before
