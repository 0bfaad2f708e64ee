"""One explicit centring under open sizes: choosing its place asks nothing of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

import normfuse


class Cut(nn.Module):
    """A stream that a nonlinear writer begins, of tokens whose number depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16).double(), nn.Linear(16, 16).double()
        self.n, self.m = nn.LayerNorm(16).double(), nn.LayerNorm(16).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x[x[..., 0] > 0]))
        y: torch.Tensor = self.m(h + self.b(self.n(h)))
        return y


def test_the_place_of_a_centring_asks_nothing_of_sizes() -> None:
    """What depends on data cannot be asked for, which would be an error here; 1e-12 in float64."""
    torch.manual_seed(0)
    model = Cut().eval()
    fast = torch.compile(
        copy.deepcopy(model), backend="normfuse", options={"normfuse.inner": "eager"}, dynamic=True
    )
    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for batch, length in ((4, 6), (7, 3)):
            x = torch.randn(batch, length, 16).double()
            wanted = model(x)
            assert float((fast(x) - wanted).norm()) <= 1e-12 * float(wanted.norm())
    report = normfuse.last_report()
    assert (report.after, report.centrings) == ({"rms_norm": 2}, 1)
