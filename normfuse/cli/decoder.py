"""One decode step of a GPT-2-like transformer: a token, a cache of keys and values, the next token's logits.

Plain PyTorch with a LayerNorm before every sublayer. The cache goes in and the new keys and
values come out as tensors, so that the step is one graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GPT2_SMALL", "DecoderSize", "DecoderStep", "decode_inputs"]


@dataclass(frozen=True)
class DecoderSize:
    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int
    cached: int


GPT2_SMALL = DecoderSize(layers=12, width=768, heads=12, vocabulary=50257, positions=1024, cached=96)


class CachedAttention(nn.Module):
    """Attention of the newest position over the cache and itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.project_in(x).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, torch.cat((keys, k), 2), torch.cat((values, v), 2))
        return self.project_out(attended.transpose(1, 2).reshape(batch, length, width)), k, v


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = CachedAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.attention(self.norm_1(x), keys, values)
        x = x + attended
        return x + self.mlp(self.norm_2(x)), k, v


class DecoderStep(nn.Module):
    """Token and position embedding, blocks, a final norm and a head that shares the token embedding."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.positions, size.width)
        self.blocks = nn.ModuleList(DecoderBlock(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.apply(_initialise)
        self.head.weight = self.tokens.weight

    def forward(
        self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the new position's keys and values, stacked over the layers like the cache."""
        x = self.tokens(token) + self.positions(position)
        new_keys, new_values = [], []
        for layer, block in enumerate(self.blocks):
            x, k, v = block(x, keys[layer], values[layer])
            new_keys.append(k)
            new_values.append(v)
        return self.head(self.norm(x)), torch.stack(new_keys), torch.stack(new_values)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        # a scale and shift that are not the identity, as in a trained model
        nn.init.normal_(module.weight, mean=1.0, std=0.1)
        nn.init.normal_(module.bias, std=0.1)


def decode_inputs(size: DecoderSize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token at the position after a full cache of ``size.cached`` entries."""
    cache = (size.layers, 1, size.heads, size.cached, size.width // size.heads)
    token = torch.randint(size.vocabulary, (1, 1))
    return token, torch.tensor([[size.cached]]), torch.randn(cache), torch.randn(cache)
