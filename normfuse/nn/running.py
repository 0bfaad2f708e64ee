"""Running statistics: buffers in float32 at least, and how they follow the batches.

In float16 the square of 256 is infinite, and in bfloat16 an average stops following what differs by a
hundredth; so statistics stay as they are where a layer is made in half precision, or brought to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.nn.precision import cast, wide_dtype, widened

__all__ = ["WithStatistics", "batch_norm", "follow"]


class WithStatistics(nn.Module):
    """A layer whose floating-point buffers are statistics."""

    def add_statistic(self, name: str, start: float, *shape: int, **made: Any) -> None:
        """A buffer of one value everywhere."""
        self.register_buffer(name, widened(torch.full(shape, start, **made)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != wide_dtype(moved):
                self._buffers[name] = buffer.to(moved.device, wide_dtype(moved))
        return self


def batch_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    """``F.batch_norm`` by the options, parameters and statistics of ``layer``."""
    mean, var = layer.running_mean, layer.running_var
    weight, bias = (None if p is None else cast(p, mean.dtype) for p in (layer.weight, layer.bias))
    return F.batch_norm(x, mean, var, weight, bias, training, layer.momentum, layer.eps)


@torch.no_grad()
def follow(running: Tensor, new: Tensor, share: float) -> None:
    """``running = (1 - share) running + share new``."""
    running.copy_((1 - share) * running + share * new)
