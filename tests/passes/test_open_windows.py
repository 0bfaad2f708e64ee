"""Windows of an image of open sizes, cut and joined as in Swin: products with ``H // 4`` say little."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normfuse
from normfuse.nn import RepBatchNorm, UnifiedNorm

WIDTH, SIDE = 8, 4
#: Sums of 8 products one behind another, four deep, in another order, of values below 100.
TOLERANCE = 4 * 8 * 100 * 2**-52


class Windows(nn.Module):
    """A residual block over windows, cut and joined with sizes that are left to PyTorch (-1)."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.up, self.down, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.last = norm(WIDTH), norm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        x = self.first(x)
        cut = self.norm(x).view(batch, height // SIDE, SIDE, width // SIDE, SIDE, channels)
        windows = cut.transpose(2, 3).contiguous().view(-1, SIDE, SIDE, channels)
        y = self.down(torch.relu(self.up(windows.view(-1, SIDE * SIDE, channels))))
        y = y.view(-1, SIDE, SIDE, channels)
        y = y.view(-1, height // SIDE, width // SIDE, SIDE, SIDE, channels)
        x = x + y.transpose(2, 3).contiguous().view(-1, height, width, channels)
        return self.head(self.last(x))


@pytest.mark.parametrize("norm", [UnifiedNorm, RepBatchNorm, nn.LayerNorm])
def test_windows_of_open_sizes(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Windows(norm).double().eval()
    options = {"normfuse.inner": "eager", "normfuse.policy": "convert"}
    fast = torch.compile(model, backend="normfuse", options=options, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for sizes in ((2, 8, 12), (3, 8, 20)):
            x = torch.randn(*sizes, WIDTH, dtype=torch.float64)
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=TOLERANCE)
    expected = "converted" if norm is nn.LayerNorm else "folded"
    assert [site.action for site in normfuse.last_report(fast).sites] == [expected] * 2
