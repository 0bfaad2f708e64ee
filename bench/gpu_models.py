"""Pre-norm transformers whose code for a GPU is counted and timed: GPT-2 with LayerNorm, Llama with RMSNorm.

Attention is one library call in both, which reads queries, keys and values of the rows that are there: no
cache. The Llama turns its queries and keys by angles that are the same in all layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MODELS", "Gpt2", "Llama", "inputs"]

EPS = 1e-5
#: Of a width and an eps; ``nn.Identity`` is one too.
Norm = Callable[[int, float], nn.Module]
_ENDS, _HEAD = 128, 64


@torch.library.custom_op("normfuse_bench::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One library call, in heads of 64: reads queries, keys and values, writes as much as the queries are."""
    q, k, v = (one.unflatten(-1, (-1, _HEAD)).transpose(-3, -2) for one in (q, k, v))
    found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return found.transpose(-3, -2).flatten(-2).contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op("normfuse_bench::attention_backward", mutates_args=())
def attention_backward(
    arriving: Tensor, q: Tensor, k: Tensor, v: Tensor, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stands for the gradient of it."""
    raise NotImplementedError("only counted, never run")


@attention_backward.register_fake
def _(arriving: Tensor, q: Tensor, k: Tensor, v: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


attention.register_autograd(
    lambda ctx, arriving: attention_backward(arriving, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


class _Stack(nn.Module):
    """A layer that makes the stream, blocks, a norm and a head: ``(1, rows, 128)`` to the same."""

    def __init__(self, d: int, layers: int, block: Callable[[int, Norm], nn.Module], norm: Norm) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(_ENDS, d), nn.Linear(d, _ENDS, bias=False)
        self.blocks, self.norm = nn.ModuleList(block(d, norm) for _ in range(layers)), norm(d, EPS)

    def forward(self, given: Tensor, *more: Tensor) -> Tensor:
        x = self.start(given)
        for block in self.blocks:
            x = block(x, *more)
        y: Tensor = self.head(self.norm(x))
        return y


class _Gpt2Block(nn.Module):
    def __init__(self, d: int, norm: Norm) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm(d, EPS), norm(d, EPS)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attention(*self.qkv(self.norm_1(x)).chunk(3, -1)))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))
        return y


class _LlamaBlock(nn.Module):
    def __init__(self, d: int, norm: Norm) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm(d, EPS), norm(d, EPS)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 8 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).chunk(3, -1)
        x = x + self.out(attention(_turned(q, cosines, sines), _turned(k, cosines, sines), v))
        gate, value = self.up(self.norm_2(x)).chunk(2, -1)
        y: Tensor = x + self.down(F.silu(gate) * value)
        return y


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embeddings of neighbours (Su et al. 2021, arXiv 2104.09864, equation 34)."""
    first, second = x.view(*x.shape[:-1], -1, _HEAD // 2, 2).unbind(-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.stack(turned, -1).view(x.shape)


class Gpt2(_Stack):
    def __init__(self, d: int, layers: int, norm: Norm = nn.LayerNorm) -> None:
        super().__init__(d, layers, _Gpt2Block, norm)


class Llama(_Stack):
    def __init__(self, d: int, layers: int, norm: Norm = nn.RMSNorm) -> None:
        super().__init__(d, layers, _LlamaBlock, norm)


def inputs(name: str, rows: int) -> tuple[Tensor, ...]:
    """Rows for the first layer, and for a Llama the cosines and sines of its angles."""
    given = torch.zeros(1, rows, _ENDS, dtype=torch.bfloat16)
    if name == "GPT-2":
        return (given,)
    angles = torch.rand(rows, 1, _HEAD // 2)
    return given, angles.cos().bfloat16(), angles.sin().bfloat16()


MODELS: dict[str, type[Gpt2] | type[Llama]] = {"GPT-2": Gpt2, "Llama": Llama}
