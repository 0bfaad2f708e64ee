"""``nn.BatchNorm2d`` with statistics in float32 at least, inside of other layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normfuse.nn.precision import widened
from normfuse.nn.running import WithStatistics, batch_norm

__all__ = ["PlainBatchNorm"]


class PlainBatchNorm(WithStatistics, nn.BatchNorm2d):
    """The same but for half precision."""

    def __init__(self, num_features: int, eps: float, momentum: float, **made: Any) -> None:
        super().__init__(num_features, eps, momentum, **made)
        for name in ("running_mean", "running_var"):
            self._buffers[name] = widened(self.get_buffer(name))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 as in nn.BatchNorm2d
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        return batch_norm(self, input, self.training)
