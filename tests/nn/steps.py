"""Training steps of a layer, beside those of a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Sums over at most 21 tokens, logarithms and powers, in another order: each of the fifty steps may add some
#: 100 roundings of 1.1e-16, relative to values of order one; 50 * 100 * 1.1e-16 = 0.6e-12.
ATOL = 1e-12


@dataclass
class Batch:
    x: Tensor
    dy: Tensor
    mask: Tensor | None

    def flat(self) -> tuple[Any, Any, Any]:
        """Tokens, gradients and validity, as a reference takes them."""
        channels = self.x.shape[-1]
        tokens = self.x.reshape(-1, channels).numpy()
        valid = np.ones(len(tokens), bool) if self.mask is None else ~self.mask.reshape(-1).numpy()
        return tokens, self.dy.reshape(-1, channels).numpy(), valid


def batches(
    count: int, masked: bool, channels: int = 8, seed: int = 0, odd: tuple[int, ...] = ()
) -> Iterator[Batch]:
    """Batches whose scale wanders; those named ``odd`` are outliers in one channel."""
    make = torch.Generator().manual_seed(seed)
    for number in range(count):
        x = torch.randn(3, 7, channels, generator=make, dtype=torch.float64)
        x = x * (1 + 0.3 * torch.rand(channels, generator=make, dtype=torch.float64)) + 0.2
        if number in odd:
            x[..., 1] *= 40
        dy = torch.randn(3, 7, channels, generator=make, dtype=torch.float64)
        mask = torch.rand(3, 7, generator=make) < 0.3
        yield Batch(x, dy, mask if masked else None)


def step(layer: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Output and gradient of the input; gradients of parameters are left in them."""
    layer.zero_grad()
    x = batch.x.clone().requires_grad_()
    y = layer(x) if batch.mask is None else layer(x, batch.mask)
    y.backward(batch.dy)
    return y.detach(), x.grad


def drift(layer: nn.Module) -> None:
    """Another weight and bias than one and zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel(), dtype=torch.float64).flip(0))


def close(found: Any, expected: Any, atol: float = ATOL) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).detach(), torch.as_tensor(expected), rtol=atol, atol=atol
    )
