"""Values beside a weight go into its sum in float32 only where that costs no precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import normfuse
from normfuse.report import Site

OPTIONS = {"normfuse.inner": "eager"}


class Joined(nn.Module):
    """``bn(conv(x) + x)``, or ``bn(conv(x)) + bn(x)``."""

    def __init__(self, own: bool, groups: int, gain: float) -> None:
        super().__init__()
        self.conv, self.norm, self.own = (
            nn.Conv2d(32, 32, 3, padding=1, groups=groups),
            nn.BatchNorm2d(32),
            own,
        )
        self.beside = nn.BatchNorm2d(32)
        with torch.no_grad():
            self.conv.weight.mul_(gain / self.conv.weight.norm() * 32**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x) + x) if self.own else self.norm(self.conv(x)) + self.beside(x)


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 32, 9, 9, generator=torch.Generator().manual_seed(0)).to(dtype)


def last_site(model: nn.Module, dtype: torch.dtype = torch.float32) -> Site:
    return normfuse.rewrite(model.to(dtype).eval(), (image(dtype),), verify="off").report.sites[-1]


@pytest.mark.parametrize("own", [True, False])
def test_what_is_larger_than_the_result_of_the_weight_stays(own: bool) -> None:
    """A sum of 288 products, in each of which an identity would round."""
    site = last_site(Joined(own, 1, 0.1))
    assert site.action == "kept"
    assert site.refusal is not None
    assert site.refusal.code == "large_tap"
    assert "288 products" in site.refusal.message
    assert last_site(Joined(own, 1, 2.0)).action == "folded"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_lose_nothing(dtype: torch.dtype) -> None:
    assert last_site(Joined(True, 1, 0.1), dtype).action == "folded"


def test_short_sums_lose_nothing() -> None:
    assert last_site(Joined(True, 32, 0.1)).action == "folded"


def test_weights_that_shrink_have_the_graph_compiled_anew() -> None:
    torch._dynamo.reset()
    model = Joined(True, 1, 2.0).eval()
    fast = torch.compile(model, backend="normfuse", options=OPTIONS)
    with torch.no_grad():
        fast(image())
        assert normfuse.last_report().after == {}
        model.conv.weight.mul_(0.01)
        expected = copy.deepcopy(model).double()(image().double())
        for _ in range(3):
            found = fast(image())
            # One rounding of each of ten operators at the size of the largest number.
            assert (found - expected).abs().max() <= 10 * 2**-23 * expected.abs().max()
    assert normfuse.last_report().after == {"batch_norm": 1}


def test_an_expanded_weight_takes_nothing() -> None:
    """What it would become has no entries in several places, and lies otherwise."""

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.norm = nn.Parameter(torch.randn(4, 1, 3, 3)), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight.expand(4, 4, 3, 3)
            return self.norm(nn.functional.conv2d(x, weight, padding=1) + x)

    model, x = Expanded().double().eval(), torch.randn(3, 4, 4, 6, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,), verify="off").module()
    with torch.no_grad():
        assert made(x).stride() == model(x).stride()
