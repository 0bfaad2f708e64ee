"""Models of several graphs, and graphs of several streams."""

from __future__ import annotations

import torch
from torch import nn

import normfuse
from normfuse.report import Report
from tests.backends.networks import Block, example, prenorm
from tests.situations.models import CONVERT, close, outputs, pair, report
from tests.situations.registry import situation

PIECES = "Graphs in pieces, several streams"


class Broken(nn.Module):
    """A graph break behind the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.blocks[0](self.inner.embed(x))
        torch._dynamo.graph_break()
        return self.inner.head(self.inner.norm(self.inner.blocks[1](x)))


@situation(
    PIECES, "a graph break in the middle of a stream", "works, 2 of 3 converted; refused: `stream_is_output`"
)
def graph_break() -> Report:
    return outputs(Broken(), example())


@situation(PIECES, "per-block `.compile()`", "refused: `stream_is_output`")
def per_block() -> Report:
    model, reference = pair(prenorm())
    for block in model.blocks:
        block.compile(backend="normfuse", options=CONVERT)
    with torch.no_grad():
        close(model(example()), reference(example()))
    return report()


@situation(PIECES, 'the same after `normfuse.apply(norms="rms_norm")`', "refused: `already_rms_norm`")
def per_block_applied() -> Report:
    model, reference = pair(prenorm())
    normfuse.apply(model.eval(), (example(),), paths="shown", norms="rms_norm")
    for block in model.blocks:
        block.compile(backend="normfuse", options=CONVERT)
    with torch.no_grad():
        close(model(example()), reference(example()))
    return report()


class Layer(nn.Module):
    """A convolution with a batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu()


@situation(
    PIECES,
    "layers with a batch norm, each compiled on its own: one graph, and other weights in every layer",
    "works, 1 of 1 folded",
)
def layers_of_one_graph() -> Report:
    torch.manual_seed(0)
    model, reference = pair(nn.Sequential(Layer(), Layer(), Layer()).double().eval())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    for layer in model:
        layer.compile(backend="normfuse", options=CONVERT)
    with torch.no_grad():
        for factor in (1.0, 1.5):
            for network in (model, reference):
                for layer in network:
                    layer.norm.running_var.mul_(factor)
            close(model(x), reference(x))
    return report()


class Twice(nn.Module):
    """Every block is called twice, and both calls share its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        for block in (*self.inner.blocks, *self.inner.blocks):
            x = block(x)
        return self.inner.head(self.inner.norm(x))


@situation(PIECES, "modules called twice", "works, 5 of 5 converted")
def twice() -> Report:
    return outputs(Twice(), example())


class Shared(nn.Module):
    """One block stands in two streams of different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.block = nn.Linear(8, 16), nn.Linear(8, 16), Block(16)
        self.norm = nn.LayerNorm(16)
        self.double()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(self.block(self.left(x))), self.norm(self.block(self.right(x)))


@situation(PIECES, "a block shared by two towers", "works, 4 of 4 converted")
def towers() -> Report:
    return outputs(Shared().eval(), example())


class EncoderDecoder(nn.Module):
    """Two streams, joined by cross-attention on the encoder's normalized output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = prenorm(), prenorm(seed=1)
        self.cross, self.cross_norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.double()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        memory = self.encoder.norm(self.encoder.blocks[0](self.encoder.embed(x)))
        h = self.decoder.blocks[0](self.decoder.embed(y))
        h = h + self.cross(self.cross_norm(h), memory, memory, need_weights=False)[0]
        return self.decoder.head(self.decoder.norm(h))


@situation(PIECES, "encoder and decoder with cross-attention", "works, 5 of 5 converted")
def encoder_decoder() -> Report:
    return outputs(EncoderDecoder().eval(), example(), example(4))


class LongSkips(nn.Module):
    """U-ViT: a later block reads an earlier value through a concatenation and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.join = prenorm(depth=4), nn.Linear(32, 16).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.embed(x)
        first = self.inner.blocks[0](x)
        second = self.inner.blocks[1](first)
        x = self.inner.blocks[2](self.join(torch.cat([second, first], -1)))
        return self.inner.head(self.inner.norm(self.inner.blocks[3](x)))


@situation(PIECES, "U-ViT long skips", "works, 3 of 5 converted; refused: `channel_mix`")
def long_skips() -> Report:
    return outputs(LongSkips().eval(), example())


class Leaves(nn.Module):
    """Returns the hidden state of every block."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = prenorm()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        hidden = [self.inner.embed(x)]
        for block in self.inner.blocks:
            hidden.append(block(hidden[-1]))
        return [*hidden, self.inner.norm(hidden[-1])]


@situation(PIECES, "hidden states are returned", "refused: `stream_is_output`")
def hidden_states() -> Report:
    return outputs(Leaves(), example())
