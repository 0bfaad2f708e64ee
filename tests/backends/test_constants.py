"""What a model makes anew in each call, as with ``torch.tensor``, does not remember the last one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class Counting(nn.Module):
    """A norm to rewrite, a constant that is written, and one that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.norm, self.read = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count = torch.tensor(2.0)
        count.add_(1.0)
        return self.read(self.norm(self.write(x))) * count * torch.tensor(0.5), torch.tensor(3.0)


@pytest.mark.parametrize("freeze", ["auto", "off"])
def test_it_is_new_in_each_call(freeze: str) -> None:
    torch.manual_seed(0)
    model, x = Counting().eval(), torch.randn(4, 8)
    options = {"normfuse.inner": "eager", "normfuse.freeze": freeze}
    fast = torch.compile(model, backend="normfuse", options=options)
    with torch.no_grad():
        for _ in range(3):
            found, three = fast(x)
            # Two products of eight numbers, and a norm, in float32.
            torch.testing.assert_close(found, model(x)[0], rtol=0, atol=64 * 2**-24 * 8)
            assert three.item() == 3.0
            three.zero_()
