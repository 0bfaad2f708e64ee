"""Random convolutional networks whose batch norms stand behind, before and beside convolutions."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

__all__ = ["network"]

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Identity)


def _draw(generator: Generator, among: int) -> int:
    return int(torch.randint(among, (), generator=generator))


class Block(nn.Module):
    """One of seven places for two batch norms."""

    def __init__(self, generator: Generator, before: int, width: int) -> None:
        super().__init__()
        self.kind, kernel = _draw(generator, 7), (1, 3, 5)[_draw(generator, 3)]
        depthwise = before == width and _draw(generator, 3) == 0
        self.first = nn.Conv2d(
            before, width, kernel, padding=kernel // 2, groups=width if depthwise else 1,
            bias=bool(_draw(generator, 2)),
        )  # fmt: skip
        self.second = nn.Conv2d(width, width, 1)
        self.a, self.b = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.act = _ACTIVATIONS[_draw(generator, 6)]()
        self.scale = nn.Parameter(torch.rand(width, 1, 1, generator=generator) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y, act = self.first(x), self.act
        if self.kind in (0, 1, 2, 5):
            h = act(self.a(y))
            second = self.b(self.second(h))
            return (h, act(second), h + 0.5 * second, h, h, h + self.scale * second)[self.kind]
        if self.kind == 3:
            return act(self.second(self.a(act(y))))
        if self.kind == 4:
            h = act(y)
            return act(self.second(h) + self.b(h))
        h = self.a(y)
        return act(h) * torch.sigmoid(self.b(self.second(h)).mean((2, 3), keepdim=True))


class Net(nn.Module):
    """A few blocks, sometimes attention, sometimes a norm that cannot be folded, and a head."""

    def __init__(self, number: int) -> None:
        super().__init__()
        generator, width = torch.Generator().manual_seed(number), 3
        self.blocks = nn.ModuleList()
        for _ in range(2 + _draw(generator, 5)):
            before, width = width, (8, 16, 24)[_draw(generator, 3)]
            self.blocks.append(Block(generator, before, width))
        self.attends, self.rolls = _draw(generator, 3) == 0, _draw(generator, 3) == 0
        self.kept, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.attends:
            t = x.flatten(2)
            x = (t @ torch.softmax(0.02 * t.transpose(1, 2) @ t, -1)).view_as(x)
        if self.rolls:
            x = torch.relu(self.kept(x.roll(1, 1)))
        return self.head(x.mean((2, 3)))


def network(number: int, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """An architecture with the weights of a seed, and an input."""
    torch.manual_seed(1000 * number + seed)
    model = Net(number).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.3, 2.0)
            norm.weight.data.normal_(1, 0.3)
            norm.bias.data.normal_(0, 0.3)
    return model, torch.randn(2, 3, 14, 14)
