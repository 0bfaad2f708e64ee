"""Running statistics: buffers in float32 at least, and how they follow the batches.

In float16 the square of 256 is infinite, and in bfloat16 an average stops following what differs by a
hundredth; so statistics stay as they are where a layer is made in half precision, or brought to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfuse.nn.precision import cast, wide_dtype, widened
from normfuse.torch_compat import is_transformed
from normfuse.warn import warn_user

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WithStatistics", "batch_norm", "follow"]

#: Statistics beyond this share of what their dtype holds come from values whose squares it cannot hold.
_USUAL = 2.0**-8


class WithStatistics(nn.Module):
    """A layer whose floating-point buffers are statistics.

    It warns once where these are nan, infinite or too large to have been measured: at ``eval()`` and, in
    eager mode on a CPU, in the step itself. Elsewhere each step would have to wait for the device.
    """

    _has_warned = False

    def add_statistic(self, name: str, start: float, *shape: int, **made: Any) -> None:
        """A buffer of one value everywhere."""
        self.register_buffer(name, widened(torch.full(shape, start, **made)))

    def train(self, mode: bool = True) -> Self:
        """As that of nn.Module; at the change to evaluation the statistics are looked at."""
        if self.training and not mode and not torch.compiler.is_compiling():
            self._warn_of_statistics()
        super().train(mode)
        return self

    def warn_in_step(self) -> None:
        """Look at the statistics that a step of training has just written, where that is cheap."""
        if torch.compiler.is_compiling():
            return
        if all(_is_at_hand(b) for b in self._buffers.values() if b is not None):
            self._warn_of_statistics()

    def _warn_of_statistics(self) -> None:
        if self._has_warned:
            return
        names = [name for name, b in self._buffers.items() if b is not None and _is_unusual(b)]
        if names:
            self._has_warned = True
            warn_user(
                f"{type(self).__name__}: {' and '.join(names)} became nan, infinite or too large to go on "
                "with: a batch had such values, or some whose squares are; evaluation uses these statistics"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self.get_buffer(name)
            if moved.dtype != wide_dtype(moved):
                self._buffers[name] = buffer.to(moved.device, wide_dtype(moved))
        return self


def _is_at_hand(statistic: Tensor) -> bool:
    plain = type(statistic) is Tensor and not is_transformed(statistic)
    return plain and statistic.device.type == "cpu"


def _is_unusual(statistic: Tensor) -> bool:
    if not statistic.is_floating_point() or statistic.numel() == 0 or statistic.is_meta:
        return False
    return not bool(statistic.detach().abs().max() < _USUAL * torch.finfo(statistic.dtype).max)


def batch_norm(layer: Any, x: Tensor, training: bool) -> Tensor:
    """``F.batch_norm`` by the options, parameters and statistics of ``layer``."""
    mean, var = layer.running_mean, layer.running_var
    weight, bias = (None if p is None else cast(p, mean.dtype) for p in (layer.weight, layer.bias))
    y = F.batch_norm(x, mean, var, weight, bias, training, layer.momentum, layer.eps)
    if training:
        layer.warn_in_step()
    return y


@torch.no_grad()
def follow(running: Tensor, new: Tensor, share: float) -> None:
    """``running = (1 - share) running + share new``."""
    running.copy_((1 - share) * running + share * new)
