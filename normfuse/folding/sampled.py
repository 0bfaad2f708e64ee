"""Entries of a tensor on an accelerator, compared where there is time to wait for them.

A comparison waits for the device, so it is made when a weight is looked up or when graphs that share it take
turns, and not at every call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from normfuse.torch_compat import outside_tracing

__all__ = ["Sampled", "are_unchanged", "sampled"]

#: Entries as they are now, a view of the tensor, and as they were; both as integers, since nan equals nan.
Sampled = tuple[torch.Tensor, torch.Tensor]

_COUNT = 2**10
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def sampled(tensor: torch.Tensor) -> Sampled | None:
    """Up to 1,024 entries that lie evenly over a strided tensor; None where it has none to compare."""
    if tensor.layout != torch.strided or not tensor.numel() or tensor.element_size() not in _BITS:
        return None
    with outside_tracing():
        bits = tensor.detach().view(_BITS[tensor.element_size()])
        entries = 1 + sum((n - 1) * s for n, s in zip(bits.shape, bits.stride(), strict=True))
        step = max(entries // _COUNT, 1) | 1
        now = bits.as_strided((-(-entries // step),), (step,), bits.storage_offset())
        return now, now.clone()


def are_unchanged(samples: Iterable[Sampled]) -> bool:
    """Whether all of them are what they were; one comparison for each device and dtype."""
    alike: dict[tuple[torch.device, torch.dtype], list[Sampled]] = defaultdict(list)
    for now, before in samples:
        alike[now.device, now.dtype].append((now, before))
    with outside_tracing():
        return all(
            torch.equal(torch.cat([now for now, _ in pairs]), torch.cat([before for _, before in pairs]))
            for pairs in alike.values()
        )
