"""Placements of norms that the literature proposes, as small float64 networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HIDDEN = 16, 32


class Sublayer(nn.Module):
    """``W2 gelu(W1 x)``, what every network here puts on its residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


class Network(nn.Module):
    """Embeds, runs its blocks, normalizes, and reads out."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 5)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class PreNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.sublayer = nn.LayerNorm(WIDTH), Sublayer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sublayer(self.norm(x))


class PostNorm(PreNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.sublayer(x))


class PeriNorm(PreNorm):
    """A norm before and one after each sublayer (Kim et al. 2025, arXiv 2502.02732)."""

    def __init__(self) -> None:
        super().__init__()
        self.out_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out_norm(self.sublayer(self.norm(x)))


class ScaledNorm(PreNorm):
    """The norm's output times 1/sqrt(depth) (Sun et al. 2025, arXiv 2502.05795)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.factor = depth**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sublayer(self.norm(x) * self.factor)


class AdaptiveZero(nn.Module):
    """A DiT block: shift, scale and gate come from a condition (Peebles and Xie 2023, arXiv 2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.sublayer = nn.LayerNorm(WIDTH, elementwise_affine=False), Sublayer()
        self.modulation = nn.Linear(8, 3 * WIDTH)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulation(F.silu(condition))[:, None].chunk(3, dim=-1)
        return x + gate * self.sublayer(self.norm(x) * (1 + scale) + shift)


class Diffusion(Network):
    """A DiT: the condition is the mean of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        condition, x = x.mean(1), self.embed(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(self.norm(x))


class Experts(nn.Module):
    """Every token goes through its two best experts, all of which write the stream."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.router, self.how = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4), how
        self.experts = nn.ModuleList(Sublayer() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        gates, chosen = self.router(normed).softmax(-1).topk(2)
        return x + getattr(self, f"_{self.how}")(normed, gates, chosen)

    def _masked(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """All experts on all tokens, weighted by a gate that is zero for most."""
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            y = y + (gates * (chosen == i)).sum(-1, keepdim=True) * expert(x)
        return y

    def _added(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Each expert's tokens are gathered, and its results added where they belong."""
        flat, y = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen.flatten(0, 1) == i)
            y = y.index_add(0, token, expert(flat[token]) * gates.flatten(0, 1)[token, place, None])
        return y.view_as(x)

    def _stacked(self, x: torch.Tensor, gates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The weights of each token's experts are looked up, and multiplied in one batch."""
        up = torch.stack([e.up.weight for e in self.experts])[chosen]
        down = torch.stack([e.down.weight for e in self.experts])[chosen]
        hidden = F.gelu(torch.einsum("btd,btkhd->btkh", x, up))
        return (torch.einsum("btkh,btkdh->btkd", hidden, down) * gates[..., None]).sum(2)
