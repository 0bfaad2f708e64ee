"""Two small tasks whose data comes with Python and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.cli.digits import Attention, DigitTransformer, load_digits

__all__ = ["TASKS", "Task"]

_CONTEXT, _TEXT_BATCH, _DIGIT_BATCH = 64, 16, 64


@dataclass(frozen=True)
class Task:
    """A model, batches to train on and batches to evaluate on; a batch is inputs and targets.

    Attributes:
        filters: whether UnifiedNorm's authors leave outliers out on such data.
    """

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    held_out: list[tuple[Tensor, Tensor]]
    filters: bool


def digits() -> Task:
    """Handwritten digits, 1437 to train on, and a vision transformer."""
    data = load_digits()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.train_images), (_DIGIT_BATCH,), generator=generator)
        return data.train_images[chosen], data.train_labels[chosen]

    return Task(
        "digits", lambda: DigitTransformer(4, 64, 4), batch, [(data.test_images, data.test_labels)], True
    )


def text() -> Task:
    """Characters of Python's own help texts, the last tenth held out, and a causal transformer."""
    whole = "".join(topics[name] for name in sorted(topics))
    known = {letter: number for number, letter in enumerate(sorted(set(whole)))}
    codes = torch.tensor([known[letter] for letter in whole])
    cut = len(codes) * 9 // 10

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _windows(codes, torch.randint(cut - _CONTEXT - 1, (_TEXT_BATCH,), generator=generator))

    places = torch.arange(cut, len(codes) - _CONTEXT - 1, _CONTEXT)[:128]
    held_out = [_windows(codes, some) for some in places.split(_TEXT_BATCH)]
    return Task("text", lambda: CharacterModel(len(known)), batch, held_out, False)


TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "text": text}


def _windows(codes: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = codes[starts[:, None] + torch.arange(_CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


class Causal(Attention):
    """Attention to earlier tokens only."""

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.project_in(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.project_out(attended.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Causal(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + cast(Tensor, self.mlp(self.norm_2(x)))


class CharacterModel(nn.Module):
    """Logits of the next character."""

    def __init__(self, letters: int, layers: int = 3, width: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(_CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, letters)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes) + self.positions[: codes.shape[1]]
        return cast(Tensor, self.head(self.norm(self.blocks(x))))
