"""One source of a folded weight, watched for writes that no version counter tells of.

In memory that the host reads, the contents are compared. Elsewhere only running statistics are watched, by
the counter of batches that PyTorch's own modules keep: a batch norm in training updates them from inside the
kernel, and in eager mode their version counters stand still.
"""

from __future__ import annotations

import weakref

import torch

from normfuse.folding.contents import Contents

__all__ = ["Watch", "can_watch"]

#: Modules that count the batches they train on, as long as they run the forward that does it.
_COUNTING = (torch.nn.modules.batchnorm._NormBase,)
_COUNTED = tuple(cls.forward for cls in (torch.nn.modules.batchnorm._BatchNorm, torch.nn.SyncBatchNorm))


class Watch:
    """What one tensor held, or what its owner had counted, when it was last looked at."""

    __slots__ = ("_owner", "contents", "known")

    def __init__(
        self, tensor: torch.Tensor, may_be_statistics: bool, owner: weakref.ref[torch.nn.Module] | None
    ) -> None:
        self.contents = Contents.of(tensor, may_be_statistics)
        self._owner = None if tensor.device.type == "cpu" else owner
        self.known = self._counted()

    @property
    def counts(self) -> bool:
        """Whether it goes by what its owner counts."""
        return self._owner is not None

    def has_changed(self) -> bool:
        """The tensor must still lie where it lay."""
        return self.contents.has_changed() or self.owner_counted()

    def owner_counted(self) -> bool:
        """Whether the owner has trained on a batch since."""
        return self._counted() != self.known

    def _counted(self) -> object:
        counter = None if self._owner is None else getattr(self._owner(), "num_batches_tracked", None)
        return None if counter is None else (counter.data_ptr(), counter._version)


def can_watch(tensor: torch.Tensor, owner: torch.nn.Module | None) -> bool:
    """Whether every change of running statistics can be seen without waiting for a device."""
    if tensor.device.type == "cpu":
        return True
    counts = isinstance(owner, _COUNTING) and type(owner).forward in _COUNTED
    return counts and getattr(owner, "num_batches_tracked", None) is not None
