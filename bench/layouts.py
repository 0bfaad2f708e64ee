"""What Inductor makes of permutes around a norm of channels, beside the same norm along their own axis.

    OMP_NUM_THREADS=1 python -m bench.layouts

Each network three ways that take turns, the first one twice: how far that ratio reaches from 1 is the noise.
Loops are those of the generated code. Seconds are those of the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

CHANNELS, SIZE, BATCH = 96, 56, 4
WAYS = ("permuted", "along", "permuted")
_ROUNDS, _CALLS, _EPS = 21, 3, 1e-6
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def permuted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer norm of ConvNeXt: channels last, and back."""
    y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, _EPS)
    return y.permute(0, 3, 1, 2)


def along(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same function along axis 1."""
    variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + _EPS) * weight[:, None, None] + bias[:, None, None]


class Network(nn.Module):
    """``run(network, norm, x)`` with convolutions, and a weight and a bias for the norm."""

    def __init__(self, run: Callable[[Network, Norm, Tensor], Tensor], norm: Norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run, self.norm = run, norm
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 7, padding=3, groups=CHANNELS)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 2, 2)
        self.weight, self.bias = nn.Parameter(torch.rand(CHANNELS)), nn.Parameter(torch.rand(CHANNELS))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, lambda y, w, b: self.norm(y, w, b), x)


def downsampled(net: Network, norm: Norm, x: Tensor) -> Tensor:
    """Between the stages of ConvNeXt: a sum, a norm, a convolution with stride."""
    made: Tensor = net.second(norm(net.first(x) + x, net.weight, net.bias))
    return made


def gated(net: Network, norm: Norm, x: Tensor) -> Tensor:
    """In a U-Net: convolution, norm, activation, convolution."""
    made: Tensor = net.second(F.silu(norm(net.first(x), net.weight, net.bias)))
    return made


def returned(net: Network, norm: Norm, x: Tensor) -> Tensor:
    """The norm's values are what the caller gets, in the memory format that the model gives them."""
    return norm(x.relu(), net.weight, net.bias)


SUBJECTS = (downsampled, gated, returned)
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def measured(run: Callable[..., Tensor], x: Tensor) -> tuple[list[int], float, list[float]]:
    """Loops of each way, milliseconds of the first, and the share of it that the others take."""
    compiled, loops = [], []
    for way in WAYS:
        torch._dynamo.reset()
        made = torch.compile(Network(run, globals()[way]))
        loops.append(sum(code.count("for(int64_t x0=") for code in run_and_get_code(made, x)[1]))
        compiled.append(made)
    rounds = [[_seconds(made, x) for made in compiled] for _ in range(_ROUNDS)]
    shares = [median(one[way] / one[0] for one in rounds) for way in range(1, len(WAYS))]
    return loops, 1e3 * median(one[0] for one in rounds), shares


def _seconds(run: Callable[..., Tensor], x: Tensor) -> float:
    started = time.thread_time()
    for _ in range(_CALLS):
        run(x)
    return (time.thread_time() - started) / _CALLS


@torch.no_grad()
def main() -> None:
    """Print a line for each network and memory format."""
    for name, memory_format in FORMATS.items():
        x = torch.randn(BATCH, CHANNELS, SIZE, SIZE).to(memory_format=memory_format)
        for run in SUBJECTS:
            loops, took, (other, again) = measured(run, x)
            print(
                f"{run.__name__}, {name}: {loops[0]} loops, {loops[1]} along the axis; {took:.2f} ms, "
                f"along the axis {other:.3f}, again {again:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
