"""Choices that rest on what weights hold are made again when the weights are others."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normfuse
from normfuse.folding import Asked, BrokenPremiseError, Premise, Question, Slots

X = torch.randn(4, 6, 9, 9, generator=torch.Generator().manual_seed(0))


def reader() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3))


def writer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2))


def far(model: Any) -> None:
    model[0].running_mean.fill_(1000.5)


def shifted(model: Any) -> None:
    model[1].bias.fill_(50.0)
    model[1].weight.fill_(0.05)


def scaled(model: Any) -> None:
    model[0].weight.mul_(2000.0)
    model[1].running_var.fill_(1e-6)


def faint(model: Any) -> None:
    """Weights of 1e-6, for values of 100."""
    model[1].weight.fill_(1e-3)
    model[1].running_var.fill_(1e4)


def nearby(model: Any) -> None:
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_().mul_(0.1)
            norm.bias.normal_().mul_(0.1)


#: Model, dtype, input, what a checkpoint changes, and the reason that keeps the norm from then on.
CASES: dict[str, tuple[Callable[[], Any], torch.dtype, torch.Tensor, Callable[[Any], None], str]] = {
    "means that cancel": (reader, torch.float32, X + 1000, far, "cancellation"),
    "a large shift": (writer, torch.float32, X, shifted, ""),
    "an overflow": (writer, torch.float16, X * 1e-3, scaled, "overflow"),
    "an underflow": (writer, torch.float16, X * 100, faint, "overflow"),
}


COMPILATIONS: list[int] = []


def backend(gm: Any, inputs: Any) -> Any:
    """One for all, so that models share graphs."""
    COMPILATIONS.append(len(COMPILATIONS))
    return normfuse.normfuse_backend(gm, inputs, options={"normfuse.inner": "eager"})


def compiled(model: nn.Module) -> tuple[Any, list[int]]:
    """The model, compiled, and a list with an entry for every compilation since."""
    COMPILATIONS.clear()
    return torch.compile(model, backend=backend), COMPILATIONS


@pytest.mark.parametrize(("statistic", "value"), [("running_var", -1.0), ("running_mean", float("nan"))])
def test_statistics_that_are_none_are_left_to_the_norm(statistic: str, value: float) -> None:
    torch.manual_seed(0)
    model: Any = writer().eval()
    fast, compilations = compiled(model)
    with torch.no_grad():
        fast(X)
        getattr(model[1], statistic)[0] = value
        for _ in range(2):
            torch.testing.assert_close(fast(X), model(X), rtol=0, atol=0, equal_nan=True)
    assert len(compilations) == 2
    assert [s.refusal.code for s in normfuse.last_report().sites if s.refusal] == ["bad_statistics"]


def between() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2))


def test_what_is_no_number_keeps_its_own_norm_alone() -> None:
    """The weight between two norms has the maps of both, and is no number for the sake of one."""
    torch.manual_seed(0)
    model: Any = between().eval()
    fast, compilations = compiled(model)
    with torch.no_grad():
        fast(X)
        assert normfuse.last_report().after == {}
        model[0].running_mean[0] = float("nan")
        for _ in range(2):
            torch.testing.assert_close(fast(X), model(X), equal_nan=True)
    assert len(compilations) == 2
    sites = normfuse.last_report().sites
    assert [s.refusal.code if s.refusal else "" for s in sites] == ["bad_statistics", ""]


def test_a_number_that_is_too_large_is_doubted_for_all_that_it_reaches() -> None:
    """Each of them would be compiled by itself otherwise, one after the other."""
    torch.manual_seed(0)
    model: Any = between().eval().half()
    fast, compilations = compiled(model)
    with torch.no_grad():
        fast(X.half() * 1e-3)
        model[0].weight.fill_(60000.0)
        model[0].running_var.fill_(1e-4)
        for _ in range(2):
            fast(X.half() * 1e-3)
    assert len(compilations) == 2
    sites = normfuse.last_report().sites
    assert [s.refusal.code if s.refusal else "" for s in sites] == ["overflow", "overflow"]


def error(found: torch.Tensor, model: nn.Module, x: torch.Tensor) -> float:
    import copy

    wanted = copy.deepcopy(model).double()(x.double())
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_that_asks_for_another_rewrite_gets_it(name: str) -> None:
    """1.5 times the original's own error, and the first call is the original."""
    build, dtype, x, change, reason = CASES[name]
    torch.manual_seed(0)
    model, x = build().eval().to(dtype), x.to(dtype)
    fast, compilations = compiled(model)
    with torch.no_grad():
        fast(x)
        assert normfuse.last_report().after == {}
        change(model)
        own = error(model(x), model, x)
        assert torch.equal(fast(x), model(x))
        for _ in range(2):
            found = fast(x)
            assert bool(found.isfinite().all())
            assert error(found, model, x) <= 1.5 * own
    assert len(compilations) == 2
    assert [s.refusal.code if s.refusal else "" for s in normfuse.last_report().sites] == [reason]


@pytest.mark.parametrize("build", [reader, writer])
def test_other_weights_need_no_other_rewrite(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    fast, compilations = compiled(model)
    with torch.no_grad():
        for _ in range(3):
            fast(X)
            nearby(model)
    assert len(compilations) == 1
    assert normfuse.last_report().after == {}


@pytest.mark.parametrize("name", CASES)
def test_layers_that_share_a_graph_are_not_compiled_in_turns(name: str) -> None:
    """Each would be rewritten in another way; the second compilation is right for both."""
    build, dtype, x, change, reason = CASES[name]
    torch.manual_seed(0)
    layers, x = [build().eval().to(dtype) for _ in range(3)], x.to(dtype)
    with torch.no_grad():
        change(layers[1])
        fast = [compiled(layer)[0] for layer in layers]
        for _ in range(4):
            for layer, quick in zip(layers, fast, strict=True):
                own = error(layer(x), layer, x)
                assert error(quick(x), layer, x) <= 1.5 * own
    assert len(COMPILATIONS) == 2
    assert [s.refusal.code if s.refusal else "" for s in normfuse.last_report().sites] == [reason]


def test_weights_that_come_and_go_are_not_compiled_in_turns() -> None:
    """A doubt outlives the weight that gave rise to it until the graph is compiled again."""
    torch.manual_seed(0)
    model: Any = reader().eval()
    fast, compilations = compiled(model)
    with torch.no_grad():
        for step in range(8):
            model[0].running_mean = torch.full((6,), 1000.5 if step % 2 else 0.0)
            own = error(model(X), model, X)
            assert error(fast(X), model, X) <= 1.5 * own
    assert len(compilations) == 2


def test_a_doubt_ends_with_the_model_that_gave_rise_to_it() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        first = reader().eval()
        fast, _ = compiled(first)
        fast(X)
        far(first)
        for _ in range(2):
            fast(X)
        del fast, first
        gc.collect()
        torch._dynamo.reset()
        compiled(reader().eval())[0](X)
    assert normfuse.last_report().after == {}


def test_layers_that_share_a_graph_are_checked_and_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are their premises asked again."""
    layers = [writer().eval() for _ in range(3)]
    fast = [compiled(layer)[0] for layer in layers]
    with torch.no_grad():
        for quick in 2 * fast:
            quick(X)
        monkeypatch.setattr(Slots, "_look_up", None)
        for quick in 2 * fast:
            quick(X)
    assert len(COMPILATIONS) == 1


def test_a_graph_without_inputs_needs_no_weights() -> None:
    assert Slots([]).tensors(()) == ()


def test_a_premise_over_a_constant_names_the_weight_beside_it() -> None:
    broken = Asked(Premise("norm", Question("shift", torch.float32), (), ()), ((), (1,)))
    weight = torch.ones(2)
    assert BrokenPremiseError([broken], [None, weight]).weight is weight
