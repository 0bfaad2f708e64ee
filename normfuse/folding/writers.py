"""Writers that raise no version counter, though they can be told of.

    fused optimizers           hooks of ``torch.optim.Optimizer.step``
    collectives                operators of ``c10d``; the write ends when the work is completed
    preserved counters         FSDP fills memory anew, DDP hands out buffers

What they write is folded again. :mod:`normfuse.folding.contents` sees what they and all others write, but for
changes of a few entries.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from types import FrameType

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from normfuse.folding.store import forget, has_folded
from normfuse.torch_compat import after_collectives, after_preserved_writes, storage_id

__all__ = ["is_refilled", "watch_writers"]

_watched = False
#: The storages that were written under preserved counters.
_preserved: set[StorageWeakRef] = set()


def watch_writers() -> None:
    """From now on, be told of what these writers write; asking once more does nothing."""
    global _watched
    if not _watched:
        _watched = True
        register_optimizer_step_pre_hook(_before_optimizer_step)
        register_optimizer_step_post_hook(_after_optimizer_step)
        after_preserved_writes(_written_in_secret)
        after_collectives(_written)


def _written(tensors: Iterable[torch.Tensor], is_writing: Callable[[], bool] | None = None) -> None:
    if has_folded():
        for folded in forget(tensors):
            folded.settle(is_writing)


def _written_in_secret(tensors: Iterable[torch.Tensor]) -> None:
    known = [t for t in tensors if storage_id(t) is not None]
    fresh = {StorageWeakRef(t.untyped_storage()) for t in known} - _preserved
    if fresh:
        for gone in [one for one in _preserved if one.expired()]:
            _preserved.discard(gone)
        _preserved.update(fresh)
    _written(tensors)


def is_refilled(weight: torch.Tensor) -> bool:
    """Whether the memory of a weight was filled under a preserved counter, as FSDP does for every call."""
    is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.layout == torch.strided
    return is_plain and StorageWeakRef(weight.untyped_storage()) in _preserved


def _before_optimizer_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Hooks of the step may call the model."""
    known = weakref.ref(optimizer)
    _written(_parameters(optimizer), lambda: _is_stepping(known()))


def _after_optimizer_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    _written(_parameters(optimizer))


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_stepping(optimizer: Optimizer | None) -> bool:
    """Whether a method of the optimizer is running: a step that raises never tells that it ended."""
    for found in sys._current_frames().values():
        frame: FrameType | None = found
        while frame is not None:
            if optimizer is not None and frame.f_locals.get("self") is optimizer:
                return True
            frame = frame.f_back
    return False
