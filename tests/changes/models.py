"""A network with norms of both kinds, and statistics in places where few expect them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.backends.networks import PreNorm, prenorm

__all__ = ["Network", "image", "network"]


class Network(nn.Module):
    """Convolutions with batch norms, then a pre-norm stream from which stored means are subtracted.

    ``row``, ``rows``, ``column`` and ``frozen`` hold running statistics: in a buffer with two axes, in rows
    of one buffer, in a column of another, in a parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.stream: PreNorm = prenorm(width=64)
        self.register_buffer("row", torch.zeros(1, 64))
        self.register_buffer("rows", torch.stack([torch.zeros(64), torch.ones(64)]))
        self.register_buffer("column", torch.ones(64, 3))
        self.frozen = nn.Parameter(torch.zeros(64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        stream = self.stream
        h = stream.embed(x.flatten(2).transpose(1, 2))
        h = h - self.row - self.rows[0] - self.column[:, 1] - self.frozen
        for block in stream.blocks:
            h = block(h)
        return stream.head(stream.norm(h))

    def track(self, mean: torch.Tensor, variance: torch.Tensor | None = None) -> None:
        """A kernel writes running statistics, and raises no version counter."""
        values = torch.randn(9, mean.numel(), dtype=mean.dtype) + 5
        before = mean._version
        F.batch_norm(
            values, mean, torch.ones_like(mean) if variance is None else variance, training=True, momentum=0.9
        )
        assert mean._version == before


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network().double().eval()


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
