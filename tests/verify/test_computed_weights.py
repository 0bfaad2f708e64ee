"""Norms whose weight the graph computes behind them: rewriting by sites knows what is left of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normfuse


class Computed(nn.Module):
    """The weight is computed behind the norm that it scales, and perhaps returned as well."""

    def __init__(self, returns):
        super().__init__()
        self.returns, self.write, self.read = returns, nn.Linear(6, 6), nn.Linear(6, 6)
        self.weight, self.bias = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))
        self.register_buffer("square", torch.rand(6))

    def forward(self, x):
        u = F.rms_norm(self.write(x), (6,), eps=1e-5)
        scale = self.weight * torch.rsqrt(self.square + 1e-5)
        y = self.read(u * scale + self.bias)
        return (y, scale) if self.returns else (y,)


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_is_computed_can_be_folded_and_verified(dtype, returns):
    torch.manual_seed(0)
    model, x = Computed(returns).to(dtype).eval(), torch.randn(2, 5, 6, dtype=dtype)
    made = normfuse.rewrite(model, (x,))
    assert made.report.after == {"rms_norm": 1}
    assert normfuse.verify(model, made.program, (x,)).ok
    # Two sums of six products in the dtype, on values below 100.
    close = 2 * 6 * 100 * torch.finfo(dtype).eps
    for found, expected in zip(made.program.module()(x), model(x), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=close)
