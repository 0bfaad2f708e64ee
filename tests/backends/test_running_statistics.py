"""Folded running statistics follow the running statistics, which kernels update without a trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfuse
from normfuse.folding import Watch, can_watch, store


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().double()


def image(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 + 1


class Counted:
    """A compiled model, and how many graphs were compiled for its evaluation."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.graphs = model, 0
        self.fast = torch.compile(model, backend=self._backend)

    def _backend(self, gm, inputs):
        self.graphs += 1
        return normfuse.normfuse_backend(gm, inputs, options={"normfuse.inner": "eager"})

    def difference(self, x: torch.Tensor) -> float:
        self.model.eval()
        with torch.no_grad():
            expected = self.model(x)
            return ((self.fast(x) - expected).norm() / expected.norm()).item()


def train_in_eager(counted: Counted) -> None:
    counted.model.train()
    counted.model(image(1))


def train_compiled(counted: Counted) -> None:
    counted.model.train()
    counted.fast(image(1))


def update_by_hand(counted: Counted) -> None:
    bn = counted.model.bn1
    F.batch_norm(torch.randn(9, 6, dtype=torch.float64), bn.running_mean, bn.running_var, training=True)


def write_through_data(counted: Counted) -> None:
    counted.model.bn2.running_var.data.mul_(3)


def reset(counted: Counted) -> None:
    counted.model.bn1.reset_running_stats()


def replaced(counted: Counted) -> None:
    counted.model.bn1.running_mean = torch.randn(6, dtype=torch.float64)


def numpy_write(counted: Counted) -> None:
    counted.model.bn1.running_mean.numpy()[2] += 1


CHANGES: list[Callable[[Counted], None]] = [
    train_in_eager, train_compiled, update_by_hand, write_through_data, reset, replaced, numpy_write,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_that_changed_are_used(change: Callable[[Counted], None]) -> None:
    counted = Counted(stack().eval())
    assert counted.difference(image()) <= 1e-14
    assert normfuse.last_report().after == {}
    graphs = counted.graphs
    for _ in range(3):
        before = counted.model.bn1.running_mean.clone(), counted.model.bn2.running_var.clone()
        change(counted)
        after = counted.model.bn1.running_mean, counted.model.bn2.running_var
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) or change is reset
        assert counted.difference(image()) <= 1e-14
    assert counted.graphs == graphs + (change is train_compiled)


def test_training_leaves_no_trace_in_version_counters() -> None:
    """What makes the watch necessary."""
    bn = nn.BatchNorm2d(3).train()
    before = bn.running_mean._version, bn.running_var._version
    bn(torch.randn(2, 3, 4, 4))
    assert (bn.running_mean._version, bn.running_var._version) == before


def test_nothing_is_folded_again_while_nothing_changes() -> None:
    counted = Counted(stack().eval())
    counted.difference(image())
    refolds = sum(f.refolds for f in store.living())
    for seed in range(5):
        counted.difference(image(seed))
    assert sum(f.refolds for f in store.living()) == refolds


def test_nan_statistics_equal_themselves() -> None:
    tensor = torch.tensor([1.0, torch.nan, 0.0])
    watch = Watch(tensor, True, None)
    assert not watch.has_changed()
    tensor[2] = -0.0
    assert watch.has_changed()


def test_statistics_that_become_nan_give_what_eager_gives() -> None:
    counted = Counted(stack().eval())
    counted.difference(image())
    counted.model.bn2.running_mean[1] = torch.nan
    with torch.no_grad():
        expected, found = counted.model(image()), counted.fast(image())
    assert torch.equal(expected.isnan(), found.isnan())
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=1e-12)


def test_off_the_host_only_modules_that_count_are_watched() -> None:
    class Silent(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, training=True)

    elsewhere = torch.empty(3, device="meta")
    assert can_watch(elsewhere, nn.BatchNorm2d(3))
    assert not can_watch(elsewhere, Silent(3))
    assert not can_watch(elsewhere, nn.BatchNorm2d(3, track_running_stats=False))
    assert not can_watch(elsewhere, None)
    assert can_watch(torch.empty(3), None)
    assert can_watch(torch.empty(6)[::2], None)


def test_off_the_host_the_counted_batches_are_compared() -> None:
    import weakref

    bn = nn.BatchNorm2d(3).train()
    watch = Watch(torch.empty(3, device="meta"), True, weakref.ref(bn))
    assert not watch.has_changed()
    bn(torch.randn(2, 3, 4, 4))
    assert watch.has_changed()
