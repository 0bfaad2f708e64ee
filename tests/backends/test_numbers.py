"""Numbers of a model that Dynamo leaves open, as eps under ``dynamic=True``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list as compiled_for
from torch._dynamo.symbolic_convert import TensorifyState

import normfuse
from normfuse.backends.numbers import _MOST

BATCH, TOKENS, WIDTH = 3, 5, 8
#: A product of eight entries and two sums behind a scale, in another order: roundings of float64, with values
#: and weights below 8 and an inverse root of at most 1 / sqrt(0.1).
TOLERANCE = 12 * 2**-53 * WIDTH * 8 * 8 * 8 * 0.1**-0.5
GLOBAL_EPS = 0.25


class Norm(nn.Module):
    """What norms have that are written by hand: weight, bias, statistics, and eps as a float."""

    def __init__(self, eps: float = 0.5) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(WIDTH).double() + 0.5) for _ in range(2))
        self.register_buffer("mean", torch.rand(WIDTH).double())
        self.register_buffer("var", torch.rand(WIDTH).double() + 0.1)
        self.eps, self.alpha = eps, 0.25


class LayerNorm(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


class RMSNorm(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Outside(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True) ** 0.5 + self.eps)


class BatchNorm(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / torch.sqrt(self.var + self.eps) * self.weight + self.bias


class Unified(Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(self.var + self.eps) * self.weight + self.bias


class OfProgram(Norm):
    """Its eps is no attribute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.weight * (self.var + GLOBAL_EPS).rsqrt()) + self.bias


class Rep(Norm):
    """A skip by a float."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x - self.mean) * torch.rsqrt(self.var + self.eps) * self.weight + self.bias
        return y + self.alpha * x


SPELLED = (LayerNorm, RMSNorm, Outside, BatchNorm, Unified, OfProgram, Rep)


class Model(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, WIDTH)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(self.up(x)))


def example(batch: int = BATCH) -> torch.Tensor:
    return torch.randn(batch, TOKENS, WIDTH, dtype=torch.float64).clamp(-4, 4)


class Counting:
    """The backend, and how often Dynamo calls it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gm: Any, inputs: Any) -> Any:
        self.calls += 1
        return normfuse.normfuse_backend(gm, inputs, options={"normfuse.inner": "eager"})


def found(model: nn.Module, **settings: Any) -> list[tuple[str, str, str]]:
    """What becomes of the norms of a model, whose results are compared."""
    torch._dynamo.reset()
    fast = torch.compile(model, backend=Counting(), fullgraph=True, **settings)
    with torch.no_grad():
        for x in (example(), example(2)):
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=TOLERANCE)
    report = normfuse.last_report(fast)
    assert not report.notes
    return [(s.kind, s.action, s.refusal.code if s.refusal else "") for s in report.sites]


@pytest.mark.parametrize("norm", SPELLED)
def test_the_same_norms_as_with_sizes_that_are_fixed(norm: type[Norm]) -> None:
    model = Model(norm())
    expected = found(model, dynamic=False)
    assert len(expected) == 1
    assert found(model, dynamic=True) == expected


def test_another_value_is_compiled_for_and_one_that_goes_on_changing_is_left_open() -> None:
    model, backend = Model(Unified()), Counting()
    fast = torch.compile(model, backend=backend, dynamic=True)
    entries, folded = [], []
    with torch.no_grad():
        for step in range(_MOST + 4):
            model.norm.eps = 0.1 * (step + 1)  # 0.1 * 3 has more digits than a short decimal
            x = example()
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=TOLERANCE)
            calls = backend.calls
            fast(x)
            assert backend.calls == calls, "compiled again for a value that it is compiled for"
            entries.append(len(compiled_for(Model.forward.__code__)))
            report = normfuse.last_report(fast)
            folded.append(bool(report.sites))
            assert bool(report.sites) != any("norm.eps" in note for note in report.notes)
    assert entries == [*range(1, _MOST + 2), *[_MOST + 1] * 3]
    assert folded == [True] * _MOST + [False] * 4


def test_a_value_that_changes_without_open_sizes() -> None:
    """Dynamo itself leaves a number open from its second value on."""
    model = Model(Unified())
    fast = torch.compile(model, backend=Counting())
    with torch.no_grad():
        for eps in (0.5, 1.5):
            model.norm.eps = eps
            x = example()
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=TOLERANCE)
            assert [site.action for site in normfuse.last_report(fast).sites] == ["folded"]


def test_marked_sizes() -> None:
    x, model = example(), Model(Unified())
    torch._dynamo.mark_dynamic(x, 0)
    fast = torch.compile(model, backend=Counting(), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=TOLERANCE)
    assert [site.action for site in normfuse.last_report(fast).sites] == ["folded"]


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model(Unified())

    def forward(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        model = self.model
        x = model.up(x) * torch.rsqrt(model.norm.var + eps)
        return model.down(x)


def test_a_number_of_the_call_stays_open_and_is_named() -> None:
    model, backend = Given(), Counting()
    fast = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for eps in (0.5, 0.25, 0.125):
            x = example()
            torch.testing.assert_close(fast(x, eps), model(x, eps), rtol=0, atol=TOLERANCE)
    assert backend.calls == 1
    (note,) = normfuse.last_report(fast).notes
    assert "at each call: eps." in note


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * self.factor


def test_where_there_is_no_norm_nothing_is_asked_for() -> None:
    model, backend = Scaled(), Counting()
    fast = torch.compile(model, backend=backend, dynamic=True)
    for factor in (1.5, 2.5):
        model.factor, x = factor, example()
        assert torch.equal(fast(x), model(x))
    assert backend.calls == 1
    assert not normfuse.last_report(fast).notes


@pytest.mark.parametrize("breaks", [False, True])
def test_dynamo_is_asked_for_nothing_afterwards(breaks: bool) -> None:
    """What stays asked for would be guarded in whatever is compiled next."""

    def backend(gm: Any, inputs: Any) -> Any:
        made = Counting()(gm, inputs)
        if breaks:
            raise RuntimeError("planted")
        return made

    fast = torch.compile(Model(Unified()), backend=backend, dynamic=True)
    before = set(TensorifyState.force_specializations)
    with torch.no_grad():
        if breaks:
            with pytest.raises(Exception, match="planted"):
                fast(example())
        else:
            fast(example())
    assert TensorifyState.force_specializations == before
