"""Numbers whose squares or inverses are none: norms are seen or not, and nothing fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normfuse

Function = Callable[[torch.Tensor, float], torch.Tensor]

SPELLED: dict[str, Function] = {
    "times what the norm reads": lambda x, c: F.rms_norm(c * x, (8,), eps=1e-3),
    "times the norm": lambda x, c: F.rms_norm(x, (8,), eps=1e-3) * c,
    "times a norm by hand": lambda x, c: _core(x, _mean_square(x) + 1e-3) * c,
    "below a norm by hand": lambda x, c: _core(x, _mean_square(x) + 1e-3) / c,
    "times the statistic": lambda x, c: _core(x, _mean_square(x) * c + 1e-3),
    "below the statistic": lambda x, c: _core(x, _mean_square(x) / c),
    "times its square": lambda x, c: _core(x, (_mean_square(x).sqrt() * c).square()),
    "eps": lambda x, c: _core(x, _mean_square(x) + c),
    "exponent": lambda x, c: x * (_mean_square(x) + 1e-3) ** c,
}


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def _core(x: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    return x * square.rsqrt()


class Network(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number
        self.write, self.read = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.read(spelled(self.write(x), self.number)) for spelled in SPELLED.values()]


@pytest.mark.parametrize("number", [0.0, 1e-320, 1e-200, 1e160, 1e300, -1e160, torch.inf, torch.nan])
def test_numbers(number: float) -> None:
    """What is finite in the model is so in the program, and equal."""
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64)
    model = Network(number).double().eval()
    made = normfuse.rewrite(model, (x,), verify="off").module()
    for name, found, wanted in zip(SPELLED, made(x), model(x), strict=True):
        is_finite = wanted.isfinite()
        # Ten roundings, each of half a unit of float64, of sums of eight terms.
        torch.testing.assert_close(
            found[is_finite], wanted[is_finite], rtol=1e-13, atol=1e-13, msg=f"{name}: {number}"
        )
