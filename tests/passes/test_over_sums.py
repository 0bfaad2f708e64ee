"""The scale and shift of a norm with stored statistics pass the sums behind it, up to the next norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from normfuse.folding import precision
from normfuse.nn import BatchNorm, RepBatchNorm, UnifiedNorm
from tests.backends.test_premises import compiled
from tests.passes.building import distance

WIDTH = 8
NORMS = [BatchNorm, RepBatchNorm, UnifiedNorm]
Forward = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Norms and weights of one width, put together by ``run``."""

    def __init__(self, run: Forward, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(WIDTH), norm(WIDTH)
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head, self.table = nn.Linear(WIDTH, 3), nn.Parameter(torch.randn(5, WIDTH))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def normed(self, x: Tensor) -> Tensor:
        """Values that no weight writes."""
        return self.first(x.tanh())

    def branch(self, x: Tensor) -> Tensor:
        return self.a(self.b(x).relu())


def trained(run: Forward, norm: Callable[[int], nn.Module] = BatchNorm) -> Net:
    torch.manual_seed(0)
    net = Net(run, norm).double()
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point() and value.dim() == 1:
                value.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(value) < 0.3, -1.0, 1.0))
        for name, value in net.named_buffers():
            if "var" in name:
                value.abs_()
    return net.eval()


def block(net: Net, x: Tensor) -> Tensor:
    y = net.normed(x)
    return net.head(net.second(y + net.branch(y)))


VANISH: dict[str, Forward] = {
    "block": block,
    "norm of a norm": lambda net, x: net.head(net.second(net.normed(x))),
    "times a number": lambda net, x: net.head(torch.add(net.normed(x), net.a(x.relu()), alpha=0.5)),
    "difference": lambda net, x: net.head(net.normed(x) - net.a(x.relu())),
    "sum with a weight": lambda net, x: net.head(net.normed(x) + net.table.expand(x.shape)),
    "in place": lambda net, x: net.head(net.normed(x).add_(net.a(x.relu()))),
    "two sums": lambda net, x: (
        net.head((y := net.normed(x)) + net.a(x.relu())) + net.head(net.second(y + net.c(x.relu())))
    ),
    "one weight twice": lambda net, x: net.head(
        (y := net.normed(x)) + F.linear(F.linear(y, net.a.weight).relu(), net.a.weight)
    ),
    "one norm twice": lambda net, x: net.head(net.first((y := net.normed(x)) + net.branch(y))),
    "the same value twice": lambda net, x: net.head((y := net.normed(x)) + y),
    "mean of rows": lambda net, x: net.head((net.normed(x) + net.a(x.relu())).mean(1)),
    "turned": lambda net, x: net.head((net.normed(x).mT + net.a(x.relu()).mT).mT),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", VANISH)
def test_they_vanish(name: str, norm: Callable[[int], nn.Module]) -> None:
    net, x = trained(VANISH[name], norm), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    made = normfuse.rewrite(net, (x,))
    assert made.report.after == {}
    # Sums of at most 48 terms and some twenty roundings of each factor, in float64.
    assert distance([made.module()(x)], [net(x)]) <= 100 * 2**-52


STAY: dict[str, Forward] = {
    "the sum is returned": lambda net, x: net.normed(x) + net.a(x.relu()),
    "what is added is read elsewhere": lambda net, x: (
        net.head(net.normed(x) + (y := net.a(x.relu()))) * y.sum()
    ),
    "no weight writes what is added": lambda net, x: net.head(net.normed(x) + x.relu()),
    "two numbers": lambda net, x: net.head(torch.add(net.a(x.relu()), net.normed(x), alpha=0.5)),
    "parts of one value": lambda net, x: (
        net.head((y := net.normed(x)) + (z := F.linear(x.relu(), net.table)).repeat(1, 1, 2)[..., :WIDTH])
        + net.head(y + z.repeat(1, 1, 2)[..., :WIDTH])
    ),
    "a norm of what it reads": lambda net, x: net.head(
        F.layer_norm(net.normed(x) + net.a(x.relu()), (WIDTH,))
    ),
    "in a wider dtype": lambda net, x: net.head(
        (net.normed(x) + net.a(x.relu()).float()).to(net.head.weight.dtype)
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_it_stays(name: str) -> None:
    net, x = trained(STAY[name]), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    made = normfuse.rewrite(net, (x,))
    assert made.report.after["batch_norm"] == 1
    torch.testing.assert_close(made.module()(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_last_norm_of_an_encoder_takes_what_is_left(norm: Callable[[int], nn.Module]) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        y = net.normed(x)
        return net.second(y + net.branch(y))

    net, x = trained(run, norm), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    made = normfuse.rewrite(net, (x,))
    assert sum(made.report.after.values()) == 1
    assert distance([made.module()(x)], [net(x)]) <= 100 * 2**-52


def test_a_weight_that_reads_and_writes_the_stream_takes_one_map_only() -> None:
    """Divided by the scale as what is added, and times it as what reads: two plans for one operator."""

    def run(net: Net, x: Tensor) -> Tensor:
        y = net.normed(x)
        return net.head(y + F.linear(F.linear(y, net.a.weight), net.b.weight))

    net, x = trained(run), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    made = normfuse.rewrite(net, (x,))
    assert distance([made.module()(x)], [net(x)]) <= 100 * 2**-52


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e9])
def test_a_scale_that_nothing_can_be_divided_by(scale: float) -> None:
    net, x = trained(block).float(), torch.randn(2, 5, WIDTH)
    net.first.weight.data[0] = scale
    made = normfuse.rewrite(net, (x,))
    refusals = [site.refusal for site in made.report.sites if site.refusal]
    assert len(refusals) == 1
    assert "could not be divided" in refusals[0].message
    assert normfuse.verify(net, made, (x,)).ok


def test_float16_keeps_its_range() -> None:
    assert not precision.divides(torch.ones(3), torch.float16)
    assert precision.divides(torch.tensor([2.0**15, -(2.0**-15)]), torch.float32)
    assert not precision.divides(torch.tensor([1.0, 2.0**16.1]), torch.bfloat16)
    assert not precision.divides(torch.tensor([1.0, float("nan")]), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype: torch.dtype) -> None:
    net, x = trained(block, UnifiedNorm).to(dtype), torch.randn(64, 5, WIDTH, dtype=dtype)
    made = normfuse.rewrite(net, (x,))
    assert made.report.after == {}
    assert normfuse.verify(net, made, (x,)).ok


def test_a_scale_that_becomes_zero_is_seen() -> None:
    net, x = trained(block), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fast, compilations = compiled(net)
    with torch.no_grad():
        fast(x)
        assert normfuse.last_report().after == {}
        for scale, after in ((0.7, 1), (0.0, 2)):
            net.first.weight[3] = scale
            for _ in range(2):
                assert distance([fast(x)], [net(x)]) <= 100 * 2**-52
            assert len(compilations) == after
    assert "batch_norm" in normfuse.last_report().after


def test_where_gradients_are_recorded_nothing_is_divided() -> None:
    net, x = trained(block), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fast, _ = compiled(net)
    fast(x).sum().backward()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    net(x).sum().backward()
    assert distance(found, [p.grad for p in net.parameters() if p.grad is not None]) <= 1000 * 2**-52
    assert "batch_norm" in normfuse.last_report().after
