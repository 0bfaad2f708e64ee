"""Tensors that kernels write without raising a version counter: running statistics.

A batch norm in training updates its statistics from inside the kernel, and their version counters stand
still (they do under ``torch.compile`` rise, in eager they do not). In memory that the host reads, the
entries themselves are compared; elsewhere the counter of batches that PyTorch's own modules keep.
"""

from __future__ import annotations

import ctypes
import weakref

import torch

__all__ = ["HostCopy", "Watch", "can_watch", "may_be_statistics"]

#: The memory of a tensor on the host, whose ``raw`` are its bytes now, and what they were.
HostCopy = tuple["ctypes.Array[ctypes.c_char]", bytes]

#: No norm has statistics of so many bytes.
_LARGE = 2**20

#: Modules that count the batches they train on, as long as they run the forward that does it.
_COUNTING = (torch.nn.modules.batchnorm._NormBase,)
_COUNTED = tuple(cls.forward for cls in (torch.nn.modules.batchnorm._BatchNorm, torch.nn.SyncBatchNorm))


class Watch:
    """What one tensor held, or what its owner had counted, when it was last looked at."""

    __slots__ = ("_memory", "_owner", "known")

    def __init__(self, tensor: torch.Tensor, owner: weakref.ref[torch.nn.Module] | None) -> None:
        self._owner = None if tensor.device.type == "cpu" else owner
        self._memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
        self.known = self._state()

    @property
    def host_copy(self) -> HostCopy | None:
        """What to compare where the entries themselves are compared."""
        return (self._memory, self.known) if isinstance(self.known, bytes) else None

    def has_changed(self) -> bool:
        """The tensor must still lie where it lay."""
        return self._state() != self.known

    def _state(self) -> object:
        if self._owner is None:
            return self._memory.raw
        counter = getattr(self._owner(), "num_batches_tracked", None)
        return None if counter is None else (counter.data_ptr(), counter._version)


def may_be_statistics(buffer: torch.Tensor) -> bool:
    """Whether a batch norm in training might write to a buffer, wherever the graph at hand reads it."""
    return buffer.dim() == 1 and buffer.is_floating_point() and buffer.nbytes <= _LARGE


def can_watch(tensor: torch.Tensor, owner: torch.nn.Module | None) -> bool:
    """Whether every change of running statistics can be seen without waiting for a device."""
    if tensor.device.type == "cpu":
        return tensor.is_contiguous()
    counts = isinstance(owner, _COUNTING) and type(owner).forward in _COUNTED
    return counts and getattr(owner, "num_batches_tracked", None) is not None
