"""A pre-norm vision transformer for scikit-learn's handwritten digits, and its training.

1,797 images of 8x8 pixels are cut into sixteen patches of 2x2; a class token reads them. Every norm is
an ``nn.LayerNorm`` in front of a sublayer, as in ViT.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn

from normfuse.errors import NormfuseError

__all__ = ["DigitTransformer", "Digits", "accuracy", "load_digits", "train"]

_SIDE, _PATCH, _CLASSES = 4, 2, 10
_TEST = 360


@dataclass(frozen=True)
class Digits:
    """Images of mean 0 and variance 1 as (count, 8, 8), labels as (count,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """The data set that comes with scikit-learn, split the same way every time."""
    try:
        from sklearn import datasets
    except ImportError:
        raise NormfuseError(
            "the demo needs scikit-learn for its digits: pip install 'normfuse[models]'"
        ) from None
    images, labels = datasets.load_digits(return_X_y=True)
    images = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8)
    images = (images - images.mean()) / images.std()
    labels = torch.as_tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, training = order[:_TEST], order[_TEST:]
    return Digits(images[training], labels[training], images[test], labels[test])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.project_in(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        return cast(Tensor, self.project_out(attended))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + cast(Tensor, self.mlp(self.norm_2(x)))


class DigitTransformer(nn.Module):
    """Logits of ten classes for images of 8x8 pixels."""

    def __init__(self, layers: int = 4, width: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(_PATCH * _PATCH, width)
        # with weak positions most of the training goes into finding out where things are
        self.class_token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, _SIDE * _SIDE + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        grid = images.reshape(-1, _SIDE, _PATCH, _SIDE, _PATCH).transpose(2, 3)
        patches = self.embed(grid.reshape(-1, _SIDE * _SIDE, _PATCH * _PATCH))
        tokens = torch.cat((self.class_token.expand(len(images), -1, -1), patches), dim=1)
        return cast(Tensor, self.head(self.norm(self.blocks(tokens + self.positions))[:, 0]))


def train(
    model: nn.Module, digits: Digits, seconds: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Train for ``seconds`` with a learning rate that follows the clock; return the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    model.train()
    steps, start = 0, clock()
    with _progress() as progress:
        bar = progress.add_task("training", total=1.0, loss=math.nan)
        for images, labels in _batches(digits):
            done = (clock() - start) / seconds
            if done >= 1:
                break
            optimizer.param_groups[0]["lr"] = _learning_rate(done)
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            progress.update(bar, completed=done, loss=loss.item())
    model.eval()
    return steps


def _learning_rate(done: float, peak: float = 1e-3, warm_up: float = 0.1) -> float:
    """Up in a line, down in half a cosine."""
    return peak * min(done / warm_up, 0.5 + 0.5 * math.cos(math.pi * done))


def _batches(digits: Digits, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches without end."""
    while True:
        order = torch.randperm(len(digits.train_images))
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            yield digits.train_images[chosen], digits.train_labels[chosen]


def _progress() -> Progress:
    columns = ("{task.description}", BarColumn(), TimeRemainingColumn(), "loss {task.fields[loss]:.3f}")
    terminal = Console(stderr=True)
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return (predictions == labels).double().mean().item()
