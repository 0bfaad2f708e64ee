"""One decode step of a Llama: a token, a cache of keys and values, the next token's logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.cli.decoder import DecoderSize

__all__ = ["LLAMA", "LlamaStep"]

LLAMA = DecoderSize(layers=8, width=768, heads=12, vocabulary=32000, positions=1024, cached=96)


class Attention(nn.Module):
    """Of the newest position, turned by rotary embeddings, over the cache and itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = (
            one(x).view(batch, length, self.heads, -1).transpose(1, 2) for one in (self.q, self.k, self.v)
        )
        q, k = _turned(q, turn), _turned(k, turn)
        attended = F.scaled_dot_product_attention(q, torch.cat((keys, k), 2), torch.cat((values, v), 2))
        return self.out(attended.transpose(1, 2).reshape(batch, length, width)), k, v


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embeddings (Su et al. 2021, arXiv 2104.09864, equation 34); ``turn`` holds cosines and sines."""
    first, second = x.chunk(2, -1)
    return x * turn[0] + torch.cat((-second, first), -1) * turn[1]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        inner = 8 * width // 3
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.attention(self.norm_1(x), turn, keys, values)
        x = x + attended
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h)), k, v


class LlamaStep(nn.Module):
    """Token embedding, blocks, a final norm and a head of its own."""

    rates: Tensor

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=1e-6)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        half = size.width // size.heads // 2
        self.register_buffer("rates", 10000.0 ** (-torch.arange(half) / half))

    def forward(
        self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the new position's keys and values, stacked over the layers like the cache."""
        x = self.tokens(token)
        angles = (position[..., None] * self.rates).repeat(1, 1, 2)
        turn = torch.stack((angles.cos(), angles.sin())).to(x.dtype)[:, :, None]
        new_keys, new_values = [], []
        for layer, block in enumerate(self.blocks):
            x, k, v = block(x, turn, keys[layer], values[layer])
            new_keys.append(k)
            new_values.append(v)
        return self.head(self.norm(x)), torch.stack(new_keys), torch.stack(new_values)
