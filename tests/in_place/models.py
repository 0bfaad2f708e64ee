"""Small networks in float64 whose weights are all random, so that a wrong change cannot hide."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import normfuse
from normfuse.verify.judge import DOUBLE_BOUND

WIDTH, TOKENS, ROWS = 16, 6, 50


class Block(nn.Module):
    """A pre-norm block; ``bias`` is that of the layer that reads the norm."""

    def __init__(self, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias=bias), nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.relu(self.up(self.norm(x)))))


class Text(nn.Module):
    """A language model; ``tied`` has its head read the table of its embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, ROWS, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.table(ids))))


class Stream(nn.Module):
    """One block, called ``times`` times; with ``hidden`` the stream itself is returned as well."""

    def __init__(self, times: int = 1, **options: Any) -> None:
        super().__init__()
        self.times, self.recompute = times, False
        self.first, self.block = nn.Linear(WIDTH, WIDTH), Block(**options)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
        return x

    def forward(self, x: Tensor, hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        stream = self.hidden(x)
        result = self.head(self.norm(stream))
        return (result, stream) if hidden else result


class SecondHead(Stream):
    """Another head reads the stream without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stream = self.hidden(x)
        return self.head(self.norm(stream)), self.raw(stream)


class Scaled(Stream):
    """LayerScale behind the block's last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.down = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.hidden(x)
        return self.head(self.norm(stream + self.scale * self.down(torch.tanh(x))))


class Images(nn.Module):
    """Convolutions in front of batch norms, one of them grouped."""

    def __init__(self, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, groups=2, bias=bias), nn.BatchNorm2d(8, affine=affine)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class Normed(nn.Module):
    """A batch norm in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(self.norm(x))).mean((2, 3))


class Branches(nn.Module):
    """A convolution and a batch norm of the same values, added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.beside = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(self.norm(self.conv(x)) + self.beside(x)).mean((2, 3))


def made(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in evaluation mode with other weights and statistics than it was made with."""
    torch.manual_seed(0)
    model = model.eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.3, 2)
    return model


def vectors(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, TOKENS, WIDTH, dtype=dtype)


def tokens() -> Tensor:
    return torch.randint(0, ROWS, (4, TOKENS))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64)


def outputs(model: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        return tree_leaves(model(*args, **kwargs))


def assert_same(model: Any, reference: Any, *args: Any, **kwargs: Any) -> None:
    """Equal in float64 but for the order of sums."""
    pairs = zip(outputs(model, *args, **kwargs), outputs(reference, *args, **kwargs), strict=True)
    for found, expected in pairs:
        assert (found - expected).norm() <= DOUBLE_BOUND * expected.norm()


def applied(model: nn.Module, *args: Any, **options: Any) -> tuple[nn.Module, normfuse.Applied]:
    """A copy of the model as it was, and what ``apply`` did; the outputs are compared by the caller."""
    before = copy.deepcopy(model)
    return before, normfuse.apply(model, args, **{"paths": "shown", "verify": "off", **options})


def copied_bytes(model: nn.Module, *args: Any) -> int:
    """What ``torch.compile`` holds beside the model's weights in inference, when nothing is frozen."""
    torch._dynamo.reset()
    fast = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    outputs(fast, *args)
    return normfuse.last_report(fast).copied_bytes
