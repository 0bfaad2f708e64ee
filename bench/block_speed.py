"""A block of a pre-norm transformer on the device that is here, by what runs its norms.

The same block compiled by Inductor with ``max-autotune``, by normfuse as it measures and chooses, with the
factors deferred wherever they can be, and by Inductor without norms, which is another function and the lower
bound. Each is one CUDA graph; they take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normfuse
from bench.plain_table import aligned
from normfuse.clock import clock_of
from normfuse.errors import cause

__all__ = ["Block", "block_table", "measure_blocks"]

#: Most telling first: what comes after the time is over is left out, and said to be.
WIDTHS = (4096, 768, 8192, 2048)
ROWS = {"decode": 1, "prefill": 4096}
_MODE = "max-autotune-no-cudagraphs"
_ROUNDS = 15


class Block(nn.Module):
    """Queries, keys and values in one product, attention, and a gated MLP of four times the width."""

    def __init__(self, width: int, has_norms: bool = True) -> None:
        super().__init__()
        norms = [nn.RMSNorm(width, eps=1e-6) if has_norms else nn.Identity() for _ in range(2)]
        self.norm_1, self.norm_2 = norms
        sizes = ((width, 3 * width), (width, width), (width, 8 * width), (4 * width, width))
        self.qkv, self.out, self.up, self.down = (nn.Linear(*one, bias=False) for one in sizes)
        for norm in norms:
            for parameter in norm.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        rows, width = x.shape
        parts = self.qkv(self.norm_1(x)).chunk(3, -1)
        q, k, v = (part.view(1, rows, width // 64, 64).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = x + self.out(attended.transpose(1, 2).reshape(rows, width))
        gate, value = self.up(self.norm_2(h)).chunk(2, -1)
        y: Tensor = h + self.down(F.silu(gate) * value)
        return y


def measure_blocks(until: float, device: str = "cuda") -> list[dict[str, Any]]:
    """One entry for each size, until ``time.monotonic()`` is past ``until``."""
    sizes = [(work, width) for width in WIDTHS for work in ROWS]
    return [_tried(*size, device, until) for size in sizes]


def _tried(work: str, width: int, device: str, until: float) -> dict[str, Any]:
    """What fails does not keep the other sizes from being measured."""
    empty = {"work": work, "d": width, "milliseconds": {}, "norms": []}
    if time.monotonic() >= until:
        return empty
    try:
        return _measured(work, width, device)
    except Exception as error:
        return {**empty, "error": cause(error)}


def _measured(work: str, width: int, device: str) -> dict[str, Any]:
    model, bare = _made(width, True, device), _made(width, False, device)
    x = torch.randn(ROWS[work], width, device=device, dtype=torch.bfloat16)
    chosen: dict[str, Any] = {"normfuse.mode": _MODE}
    ways: dict[str, Callable[..., Any]] = {
        "inductor": torch.compile(model, mode=_MODE),
        "normfuse": torch.compile(model, backend=normfuse.normfuse_backend, options=chosen),
        "deferred": torch.compile(
            model, backend=normfuse.normfuse_backend, options={**chosen, "normfuse.lower": "deferred"}
        ),
        "norms deleted": torch.compile(bare, mode=_MODE),
    }
    torch._dynamo.reset()
    with torch.no_grad():
        for way in ways.values():
            way(x)
        clocks = {name: clock_of(partial(way, x), x.device) for name, way in ways.items()}
        times = [{name: clock() for name, clock in clocks.items()} for _ in range(_ROUNDS)]
    best = {name: round(1e3 * median(one[name] for one in times), 5) for name in ways}
    norms = [site.lowering for site in normfuse.last_report(ways["normfuse"]).sites]
    return {"work": work, "d": width, "milliseconds": best, "norms": norms}


def _made(width: int, has_norms: bool, device: str) -> Block:
    torch.manual_seed(0)
    return Block(width, has_norms).to(device, torch.bfloat16).eval()


def block_table(found: list[dict[str, Any]]) -> str:
    """Milliseconds, and what normfuse chose for the norms."""
    header = ("work", "d", "block", "ms", "share of inductor", "norms")
    return aligned(header, (line for one in found for line in _lines(one)))


def _lines(one: dict[str, Any]) -> list[tuple[object, ...]]:
    times = one["milliseconds"]
    if not times:
        return [(one["work"], one["d"], one.get("error", "left out, since the time was over"), "", "", "")]
    said = {"normfuse": "; ".join(one["norms"])}
    return [
        (one["work"], one["d"], name, f"{time:.4f}", f"{time / times['inductor']:.3f}", said.get(name, ""))
        for name, time in times.items()
    ]
