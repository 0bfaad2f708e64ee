"""Frozen graphs as Inductor compiles them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfuse
from normfuse.freezing import steadiness


class Images(nn.Module):
    """Convolutions with batch norms, an activation, a residual sum, and a layer behind the average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class Decoder(nn.Module):
    """One step with a cache that it writes to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.norm, self.project = nn.LayerNorm(32), nn.Linear(32, 96)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("cache", torch.zeros(2, 1, 8, 32))

    def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        x = self.table(token)
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        self.cache[0].index_copy_(1, position, k)
        self.cache[1].index_copy_(1, position, v)
        return self.head(x + F.scaled_dot_product_attention(q, self.cache[0], self.cache[1]))


def random(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for one in (*model.parameters(), *model.buffers()):
            if one.is_floating_point() and one.dim() == 1:
                one.uniform_(0.5, 1.5)
    return model.eval()


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Sums of some hundred products in float32, a few layers deep: within 1,000 roundings of the norm."""
    assert float((found.double() - exact).norm() / exact.norm()) < 1000 * 2**-24


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"cpp_wrapper": True}], ids=["python", "c++"])
def test_a_convolutional_network_follows_its_statistics(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steadiness, "_histories", {})
    model, x = random(Images()), torch.randn(2, 3, 16, 16)
    fast = torch.compile(model, backend="normfuse", options=options)
    for _ in range(2):
        wanted = widened(model)(x.double())
        for _ in range(3):
            near(fast(x), wanted)
        assert normfuse.last_report(fast).frozen == 1
        assert normfuse.last_report(fast).after == {}
        model.bn1.running_mean.add_(1)
        model.conv2.weight.mul_(1.5)


def widened(model: nn.Module) -> nn.Module:

    return copy.deepcopy(model).double()


@torch.no_grad()
def test_a_decode_step_with_a_cache_and_a_tied_table() -> None:
    model = random(Decoder())
    fast, twin = torch.compile(model, backend="normfuse"), widened(model)
    for step in range(4):
        given = torch.tensor([[3 * step]]), torch.tensor([step])
        near(fast(*given), twin(*given))
        if step == 1:
            model.table.weight.mul_(0.5)
            twin.table.weight.mul_(0.5)
    near(model.cache, twin.cache)
    assert normfuse.last_report(fast).frozen == 1


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor 2.13 has no kernel for a grouped convolution with a sum and an activation behind it."""
    monkeypatch.setenv("NORMFUSE_STRICT", "0")
    model, x = random(Images()).to(dtype), torch.randn(2, 3, 16, 16).to(dtype)
    exact = widened(model)(x.double())
    fast = torch.compile(model, backend="normfuse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [fast(x) for _ in range(3)]
    theirs = float((model(x).double() - exact).norm())
    for ours in found:
        assert float((ours.double() - exact).norm()) <= 1.5 * theirs
