"""Small vision networks of the shapes in which batch norm is met, with every number random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

W = 8


def conv_bn(i: int, o: int, kernel: int = 3, act: bool = True, **options: object) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True) if act else nn.Identity())


class Residual(nn.Module):
    """A branch beside its input, and something behind the sum."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.branch(x) + self.shortcut(x))


class Classifier(nn.Module):
    def __init__(self, *layers: nn.Module, width: int = W) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))


def resnet_basic() -> nn.Module:
    def block(i: int, o: int, stride: int) -> nn.Module:
        branch = nn.Sequential(conv_bn(i, o, stride=stride), conv_bn(o, o, act=False))
        return Residual(branch, conv_bn(i, o, 1, False, stride=stride) if i != o else None, nn.ReLU(True))

    return Classifier(
        conv_bn(3, W, 7, stride=2), nn.MaxPool2d(3, 2, 1), block(W, W, 1), block(W, 16, 2), width=16
    )


def resnet_bottleneck() -> nn.Module:
    def block(i: int, o: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(i, W, 1), conv_bn(W, W, stride=stride, groups=2), conv_bn(W, o, 1, False)
        )
        return Residual(branch, conv_bn(i, o, 1, False, stride=stride) if i != o else None, nn.ReLU(True))

    return Classifier(conv_bn(3, W), block(W, 16, 2), block(16, 16, 1), width=16)


def mobilenet() -> nn.Module:
    def block(i: int, o: int) -> nn.Module:
        wide = nn.Sequential(conv_bn(i, 24, 1), conv_bn(24, 24, groups=24), conv_bn(24, o, 1, False))
        return Residual(wide) if i == o else wide

    return Classifier(conv_bn(3, W, stride=2), block(W, W), block(W, 12), block(12, 12), width=12)


class Excite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


def efficientnet() -> nn.Module:
    def block() -> nn.Module:
        inner = nn.Sequential(conv_bn(24, 24, 5, groups=24), Excite(24), conv_bn(24, W, 1, False))
        return Residual(nn.Sequential(conv_bn(W, 24, 1), inner), after=nn.Dropout(0.2))

    return Classifier(conv_bn(3, W, stride=2), block(), block())


class Dense(nn.Module):
    """Norm, activation, convolution, twice; the result joins its input."""

    def __init__(self, i: int, growth: int = 4) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, W, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(W), nn.Conv2d(W, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(h)))], 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, W, 1, bias=False), nn.AvgPool2d(2)
    )
    return Classifier(conv_bn(3, W), Dense(W), Dense(12), transition, Dense(W), nn.BatchNorm2d(12), width=12)


def preactivation() -> nn.Module:
    def block() -> nn.Module:
        one = nn.Sequential(nn.BatchNorm2d(W), nn.ReLU(), nn.Conv2d(W, W, 3, padding=1, bias=False))
        two = nn.Sequential(nn.BatchNorm2d(W), nn.ReLU(), nn.Conv2d(W, W, 3, padding=1, bias=False))
        return Residual(nn.Sequential(one, two))

    return Classifier(nn.Conv2d(3, W, 3), block(), block(), nn.BatchNorm2d(W), nn.ReLU())


class RepVgg(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.three = conv_bn(i, o, 3, False, stride=stride, groups=groups)
        self.one = conv_bn(i, o, 1, False, stride=stride, groups=groups)
        self.identity = nn.BatchNorm2d(i) if i == o and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        same = self.identity(x) if self.identity is not None else 0
        return torch.relu(self.three(x) + self.one(x) + same)


def repvgg() -> nn.Module:
    return Classifier(RepVgg(3, W, 2), RepVgg(W, W), RepVgg(W, W, groups=4), RepVgg(W, 12, 2), width=12)


class LinearNorm(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(i, o, bias=False), nn.BatchNorm1d(o)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return self.norm(h.flatten(0, 1)).reshape_as(h)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = LinearNorm(W, 2 * 4 * 3), LinearNorm(W, W)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (2, 12)).transpose(1, 2).split([4, 4, 4], -1)
        return self.out(F.hardswish((torch.softmax(q @ k.mT / 2, -1) @ v).transpose(1, 2).flatten(2)))


class Levit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, W, stride=2), conv_bn(W, W, stride=2))
        mlp = nn.Sequential(LinearNorm(W, 16), nn.Hardswish(), LinearNorm(16, W))
        self.blocks = nn.Sequential(Residual(Attention()), Residual(mlp))
        self.norm, self.head = nn.BatchNorm1d(W), nn.Linear(W, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens).mean(1)))


class IbnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(W, W, 1, bias=False)
        self.instance, self.batch = nn.InstanceNorm2d(W // 2, affine=True), nn.BatchNorm2d(W // 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), W // 2, 1)
        return torch.relu(torch.cat((self.instance(left.contiguous()), self.batch(right.contiguous())), 1))


def ibn() -> nn.Module:
    return Classifier(conv_bn(3, W), Residual(IbnBlock()), conv_bn(W, W, 1))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def standardised() -> nn.Module:
    return Classifier(StandardisedConv(3, W, 3), nn.BatchNorm2d(W), nn.ReLU(), StandardisedConv(W, W, 3))


@dataclass(frozen=True)
class Shape:
    """``left`` are the reasons of the batch norms that stay, with how many there are of each."""

    build: Callable[[], nn.Module]
    found: int
    left: dict[str, int]


SHAPES = {
    "resnet_basic": Shape(resnet_basic, 6, {}),
    "resnet_bottleneck": Shape(resnet_bottleneck, 8, {}),
    "mobilenet": Shape(mobilenet, 10, {}),
    "efficientnet": Shape(efficientnet, 7, {}),
    "densenet": Shape(densenet, 9, {"raw_reader": 4}),
    "preactivation": Shape(preactivation, 5, {"raw_reader": 3}),
    "repvgg": Shape(repvgg, 10, {}),
    "levit": Shape(Levit, 7, {}),
    "ibn": Shape(ibn, 3, {}),
    "standardised": Shape(standardised, 1, {}),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode whose statistics are of the size of those that training leaves."""
    torch.manual_seed(0)
    model = SHAPES[name].build().eval()
    randomise(model)
    return model.to(dtype), torch.randn(4, 3, 32, 32).to(dtype)


def randomise(model: nn.Module) -> None:
    """Every weight, bias and running statistic random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.3 if parameter.dim() == 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
