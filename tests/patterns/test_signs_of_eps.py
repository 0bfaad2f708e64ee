"""A bound at zero, or an absolute value, says nothing of a statistic only where its eps is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normfuse

BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "relu": torch.relu,
    "clamp": lambda v: v.clamp(min=0.0),
    "maximum": lambda v: torch.maximum(v, torch.zeros_like(v)),
}


class Bounded(nn.Module):
    def __init__(self, bound: Callable[[Tensor], Tensor], eps: float | None) -> None:
        super().__init__()
        self.embed, self.head, self.bound = nn.Linear(6, 6), nn.Linear(6, 3), bound
        self.eps = nn.Parameter(torch.tensor(-0.2)) if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        centred = h - h.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return self.head(centred * torch.rsqrt(self.bound(variance + self.eps)))


@pytest.mark.parametrize("eps", [None, -0.2, 0.1])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_function_stays(name: str, eps: float | None) -> None:
    torch.manual_seed(0)
    model, x = Bounded(BOUNDS[name], eps).double().eval(), torch.randn(9, 6, dtype=torch.float64)
    made = normfuse.rewrite(model, (x,), verify="off")
    with torch.no_grad():
        found, wanted = made.module()(x), model(x)
    # Sums of six products, and a root of what may be near zero: half of the digits are left at least.
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8, equal_nan=True)
    assert (made.report.after == {"rms_norm": 1}) == (eps == 0.1)
