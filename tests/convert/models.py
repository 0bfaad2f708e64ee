"""Small models with norms of every kind that conversion meets."""

from __future__ import annotations

import torch
from torch import nn


class LlamaRMSNorm(nn.Module):
    """As Hugging Face writes it: in float32, rounded before the weight."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = eps

    def forward(self, x):
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normal.to(x.dtype)


class GemmaRMSNorm(nn.Module):
    """With one plus the weight."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(width))
        self.eps = eps

    def forward(self, x):
        return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class OddNorm(GemmaRMSNorm):
    """Looks like one, and is none: it divides by the largest entry."""

    def forward(self, x):
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps)


class ChannelsFirst(nn.LayerNorm):
    """A subclass that normalizes another axis."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, norm, width=8):
        super().__init__()
        self.norm, self.mlp = norm, nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def stack(*norms, width=8):
    return nn.Sequential(*(Block(norm, width) for norm in norms))


def data(count=4, width=8, seed=0):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 6, width, generator=make) for _ in range(count)]
