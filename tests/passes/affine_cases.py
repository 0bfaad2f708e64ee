"""Networks with stored statistics: which norms vanish, and which must stay, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

C, N = 6, 5


class Net(nn.Module):
    """Whatever modules, parameters and buffers are given; ``run(net, *args)`` is its forward."""

    def __init__(self, run: Callable[..., Any], held: dict[str, Any]) -> None:
        super().__init__()
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


@dataclass
class Case:
    """``codes`` are the reasons of the norms that stay, one for each of them."""

    name: str
    run: Callable[..., Any]
    held: Callable[[], dict[str, Any]]
    codes: tuple[str, ...]
    args: tuple[torch.Tensor, ...]
    prepare: Callable[[nn.Module], None] | None = None

    def model(self) -> nn.Module:
        model = randomised(Net(self.run, self.held()))
        if self.prepare is not None:
            self.prepare(model)
        return model


@dataclass
class Cases:
    found: list[Case] = field(default_factory=list)

    def __call__(
        self, *codes: str, args: tuple[torch.Tensor, ...] = (), prepare: Any = None, **held: Any
    ) -> Any:
        """Register a forward; ``held`` are factories of what the network holds."""

        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            made = {name: _factory(value) for name, value in held.items()}
            hold = lambda: {name: make() for name, make in made.items()}  # noqa: E731
            self.found.append(Case(run.__name__, run, hold, codes, args or (image(),), prepare))
            return run

        return register


def _factory(value: Any) -> Callable[[], Any]:
    return value if callable(value) and not isinstance(value, nn.Module) else lambda: value


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def image(channels: int = C) -> torch.Tensor:
    return normal(4, channels, 7, 7)


def param(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.zeros(shape))


def buffer(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.zeros(shape)


def randomised(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, every weight, bias and running statistic random."""
    model.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                made = torch.randn(value.shape, generator=generator, dtype=value.dtype) + 0.5
                value.copy_(made.abs() + 0.3 if "var" in name else made)
    return model


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)


def linear(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*args, **kwargs)


def bn(channels: int = N, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm2d(channels, **kwargs)


def bn1(channels: int = N, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm1d(channels, **kwargs)


def frozen(s: Any, x: torch.Tensor) -> torch.Tensor:
    """As in torchvision and the DETR family."""
    weight, bias = s.weight.reshape(1, -1, 1, 1), s.bias.reshape(1, -1, 1, 1)
    scale = weight * (s.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
    return x * scale + (bias - s.running_mean.reshape(1, -1, 1, 1) * scale)


FROZEN = {name: buffer(N) for name in ("weight", "bias", "running_mean", "running_var")}


def adapted(s: Any, x: torch.Tensor) -> torch.Tensor:
    """Statistics between the stored and the batch's, as in alpha-BN."""
    mean = 0.9 * s.bn.running_mean + 0.1 * x.mean((0, 2, 3))
    var = 0.9 * s.bn.running_var + 0.1 * x.var((0, 2, 3), unbiased=False)
    return F.batch_norm(x, mean, var, s.bn.weight, s.bn.bias, False, 0.0, s.bn.eps)
