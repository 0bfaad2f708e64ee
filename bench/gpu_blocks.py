"""One block of a pre-norm transformer, its norms computed in several ways.

Attention is one library call in all of them, and reads what the block made: no cache, no rotation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from normfuse.kernels import operators
from normfuse.kernels.linear_operator import linear
from normfuse.kernels.reference import RMS

__all__ = ["EPS", "FORWARD", "TRAINING", "shapes"]

EPS = 1e-6
Tensor = torch.Tensor
#: ``(stream, weight of the norm, matrix) -> (matrix times the norm of the stream)``
Read = Callable[[Tensor, Tensor, Tensor], Tensor]
Block = Callable[..., Tensor]


@torch.library.custom_op("normfuse_bench::attention", mutates_args=())
def attention(qkv: Tensor) -> Tensor:
    """Stands for a library's kernel: reads queries, keys and values, writes as much as the queries are."""
    raise NotImplementedError("only counted, never run")


@attention.register_fake
def _(qkv: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)


@torch.library.custom_op("normfuse_bench::attention_backward", mutates_args=())
def attention_backward(arriving: Tensor, qkv: Tensor, found: Tensor) -> Tensor:
    """Stands for the gradient of it."""
    raise NotImplementedError("only counted, never run")


@attention_backward.register_fake
def _(arriving: Tensor, qkv: Tensor, found: Tensor) -> Tensor:
    return torch.empty_like(qkv)


attention.register_autograd(
    lambda ctx, arriving: attention_backward(arriving, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


def shapes(rows: int, d: int) -> list[tuple[int, ...]]:
    """Of the stream, and of the weights of the block."""
    return [(rows, d), (d,), (3 * d, d), (d, d), (d,), (8 * d, d), (d, 4 * d)]


def _block(read: Read, read_again: Read | None = None) -> Block:
    second = read_again or read

    def block(
        x: Tensor, n1: Tensor, qkv: Tensor, out: Tensor, n2: Tensor, up: Tensor, down: Tensor
    ) -> Tensor:
        h = x + attention(read(x, n1, qkv)) @ out.t()
        gate, value = second(h, n2, up).chunk(2, -1)
        y: Tensor = h + (F.silu(gate) * value) @ down.t()
        return y

    return block


def _written(x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
    y: Tensor = F.rms_norm(x, x.shape[-1:], weight, EPS) @ matrix.t()
    return y


def _kernels(x: Tensor, n1: Tensor, qkv: Tensor, out: Tensor, n2: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The sum in the middle belongs to the second norm's kernel, forward and backward."""
    first = operators.norm(x, n1, None, None, None, RMS, EPS, 0.0, 1, False, True)[0]
    beside = attention(first @ qkv.t()) @ out.t()
    second, h = operators.norm(x, n2, None, beside, None, RMS, EPS, 0.0, 1, False, True)[:2]
    gate, value = (second @ up.t()).chunk(2, -1)
    y: Tensor = h + (F.silu(gate) * value) @ down.t()
    return y


def _deferred(x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
    """The weight of the norm is in the matrix; the factor of a row multiplies the product."""
    rstd = (x.float().square().mean(-1, keepdim=True) + EPS).rsqrt()
    return ((x @ matrix.t()) * rstd).to(x.dtype)


def _product(x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
    """The weight of the norm is in the matrix; one kernel reads the row and finds its factor."""
    y: Tensor = linear(x, matrix, None, EPS)[0]
    return y


def _deleted(x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
    return x @ matrix.t()


FORWARD: dict[str, Block] = {
    "Inductor": _block(_written),
    "scale of the MLP deferred": _block(_written, _deferred),
    "linear_rms_norm": _block(_product),
    "norms deleted": _block(_deleted),
}
TRAINING: dict[str, Block] = {
    "Inductor": _block(_written),
    "rms_norm kernels": _kernels,
    "norms deleted": _block(_deleted),
}
