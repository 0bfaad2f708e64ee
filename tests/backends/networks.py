"""Small networks for tests of the backend, quick to trace."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """``x + W2 relu(W1 LN(x))``"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class PreNorm(nn.Module):
    """A pre-norm residual network: ``depth + 1`` LayerNorms, all of them convertible by weights alone."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def prenorm(seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> PreNorm:
    """A random network in evaluation mode."""
    torch.manual_seed(seed)
    model = PreNorm(**sizes).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def example(batch: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(batch)
    return torch.randn(batch, 6, 8, dtype=dtype)
