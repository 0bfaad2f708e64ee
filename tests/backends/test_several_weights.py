"""Folded weights of several models, of memory that is used again, and of statistics read anywhere."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Graph

import normfuse
from normfuse.folding import Recipe, Slot, store
from normfuse.folding.store import FoldedWeight

OPTIONS = {"normfuse.inner": "eager"}
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Stream(nn.Module):
    """A residual stream of two branches; what else reads the statistics is for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.inner, self.outer = nn.LayerNorm(8), nn.LayerNorm(8)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("table", torch.stack([torch.zeros(8), torch.ones(8)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        x = x + self.scale() * self.branch(self.inner(x))
        return self.last(self.outer(x))

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)

    def scale(self) -> torch.Tensor:
        return self.norm.weight

    def train_a_little(self) -> None:
        self.norm.train()(3 * torch.randn(64, 8, dtype=torch.float64) + 5)
        self.norm.eval()


class Added(Stream):
    def start(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.norm.running_mean


class LayerScale(Stream):
    def scale(self) -> torch.Tensor:
        return self.norm.weight * (self.norm.running_var + 1e-5).rsqrt()


class FusedByHand(Stream):
    def start(self, x: torch.Tensor) -> torch.Tensor:
        gain = self.norm.weight / (self.norm.running_var + 1e-5).sqrt()
        bias = (self.first.bias - self.norm.running_mean) * gain + self.norm.bias
        return nn.functional.linear(x, self.first.weight * gain[:, None], bias)


class OfWeight(Stream):
    def start(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        weight = nn.functional.batch_norm(
            self.first.weight.t(), norm.running_mean, norm.running_var, norm.weight, norm.bias, False
        )
        return nn.functional.linear(x, weight.t(), self.first.bias)


class OfTable(Stream):
    """Statistics are rows of one buffer."""

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(self.first(x), self.table[0], self.table[1], training=False)

    def train_a_little(self) -> None:
        nn.functional.batch_norm(3 * X + 5, self.table[0], self.table[1], training=True)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Two float64 computations of some hundred roundings."""
    assert float((found - wanted).norm()) <= 1e-12 * float(wanted.norm())


@pytest.mark.parametrize("build", [Added, LayerScale, FusedByHand, OfWeight, OfTable])
def test_statistics_are_watched_wherever_they_are_read(build: Any) -> None:
    """A batch norm in training updates them in a kernel, and no version counter rises."""
    torch.manual_seed(0)
    model = build().double().eval()
    fast = torch.compile(model, backend="normfuse", options=OPTIONS)
    with torch.no_grad():
        close(fast(X), model(X))
        assert normfuse.last_report().folded
        for _ in range(2):
            model.train_a_little()
            close(fast(X), model(X))


def recipe() -> Recipe:
    body = Graph()
    source = body.placeholder("source_0")
    body.output(body.call_function(torch.ops.aten.mul.Tensor, (source, 2.0)))
    return Recipe(body, nn.Module(), torch.float32, "twice", "weight")


def test_memory_that_another_model_was_given_is_folded_anew() -> None:
    """One graph put a folded weight to another use, and another graph knows it by its old address."""
    memory = bytearray(16)
    made, owner = recipe(), nn.Module()
    slots = [Slot(made, [0], [weakref.ref(owner)]) for _ in range(2)]
    first = torch.frombuffer(memory, dtype=torch.float32)
    assert slots[0].find([first]) is slots[1].find([first])
    del first
    replaced = torch.ones(4)
    kept = slots[1].find([replaced])
    stranger = torch.frombuffer(memory, dtype=torch.float32).fill_(3.0)
    other = slots[0].find([stranger])
    assert other is not kept
    assert kept.tensor.tolist() == [2.0] * 4
    assert other.tensor.tolist() == [6.0] * 4


def test_memory_that_a_weight_comes_back_to_is_read_again() -> None:
    """An exponential average that is swapped in through ``.data``, updated, and swapped in again."""
    torch.manual_seed(0)
    model = Stream().double().eval()
    fast = torch.compile(model, backend="normfuse", options=OPTIONS)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for _ in range(3):
            kept = {name: p.data for name, p in model.named_parameters()}
            for name, p in model.named_parameters():
                p.data = average[name]
            close(fast(X), model(X))
            for name, p in model.named_parameters():
                p.data = kept[name]
            close(fast(X), model(X))
            for value in average.values():
                value.mul_(1.5)


def folded_of(model: nn.Module) -> list[FoldedWeight]:
    parameters = set(model.parameters())
    return [f for f in store.living() if any(source() in parameters for source in f.sources)]


def test_a_step_that_raises_is_over() -> None:
    torch.manual_seed(0)
    model = Stream().double().eval()
    fast = torch.compile(model, backend="normfuse", options=OPTIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> float:
        raise KeyboardInterrupt

    with torch.no_grad():
        fast(X)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
        fast(X)
        refolds = [f.refolds for f in folded_of(model)]
        for _ in range(3):
            close(fast(X), model(X))
    assert refolds
    assert [f.refolds for f in folded_of(model)] == refolds


def test_folded_weights_go_with_their_own_model() -> None:
    """The second graph takes its first folded weights from the first, and meets another model then."""
    torch.manual_seed(0)
    first, second = Stream().double().eval(), Stream().double().eval()
    fast = [torch.compile(m, backend="normfuse", options=OPTIONS) for m in (first, second)]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            fast[0](X)
    with torch.inference_mode():
        close(fast[1](X), second(X))
    gc.collect()  # models of other tests may be on their way out
    alive = len(store.living())
    count = len(folded_of(second))
    assert count
    del second, fast[1]
    gc.collect()
    assert len(store.living()) == alive - count
    with torch.inference_mode():
        close(fast[0](X), copy.deepcopy(first)(X))
