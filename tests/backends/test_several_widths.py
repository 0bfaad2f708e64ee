"""Blocks of several widths share one compiled function: their sizes begin symbolic and end as numbers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import normfuse

WIDTHS = (8, 16, 24, 32)

#: A few norms and products of up to 32 terms: some 100 roundings of 6e-8, of values up to 4.
TOLERANCE = 100 * 6e-8 * 4


def by_hand(x, weight):
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).sum(-1, keepdim=True) / x.shape[-1] + 1e-5) * weight


class Block(nn.Module):
    def __init__(self, width, native):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(3))
        self.writers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.native = native

    def forward(self, x):
        """The first norm reads the input itself, whose width is symbolic from the second block on."""
        for norm, write in zip(self.norms, self.writers, strict=False):
            x = write(norm(x) if self.native else by_hand(x, norm.weight))
        return self.norms[-1](x)


@pytest.mark.parametrize("native", [True, False], ids=["native", "by hand"])
def test_every_norm_is_found_and_converted(native):
    torch.manual_seed(0)
    torch._dynamo.reset()
    blocks = [Block(width, native).eval() for width in WIDTHS]
    compiled = torch.compile(Block.forward, backend="normfuse", options={"normfuse.inner": "eager"})
    for rows, block in enumerate(blocks, 2):
        x = torch.randn(rows, 5, block.norms[0].weight.numel())
        with torch.no_grad():
            found, expected = compiled(block, x), block(x)
        assert torch.allclose(found, expected, atol=TOLERANCE)
        codes = [site.refusal and site.refusal.code for site in normfuse.last_report().sites]
        assert codes[-3:] == ["stream_enters_graph", None, None]
    assert normfuse.last_report().after == {"layer_norm": 4, "rms_norm": 8}


def test_all_blocks_in_one_function():
    torch.manual_seed(0)
    torch._dynamo.reset()
    between = [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    layers = [
        m
        for pair in zip([Block(w, True) for w in WIDTHS], [*between, nn.Identity()], strict=True)
        for m in pair
    ]
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        found = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})(x)
        assert torch.allclose(found, model(x), atol=TOLERANCE)
    assert normfuse.last_report().after == {"layer_norm": 1, "rms_norm": 11}


class Broken(nn.Module):
    """A graph break in a loop, so that each block is compiled by itself."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, True) for width in WIDTHS)
        self.between = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS))

    def forward(self, x):
        for block, write in zip(self.blocks, [*self.between, nn.Identity()], strict=True):
            torch._dynamo.graph_break()
            x = write(block(x))
        return x


def test_blocks_that_are_compiled_one_by_one_are_all_counted():
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Broken().eval()
    compiled = torch.compile(model, backend="normfuse", options={"normfuse.inner": "eager"})
    for rows in (2, 3):
        x = torch.randn(rows, 5, 8)
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=TOLERANCE)
        assert normfuse.last_report().after == {"layer_norm": 4, "rms_norm": 8}
