"""Values of a buffer that the backward of a compiled graph does not read a second time.

The partitioner of AOTAutograd may compute a value of the forward again in the backward, from the buffer that
it was made of. Where the same graph writes to that buffer, it holds other values by then, and gradients are
silently wrong (PyTorch 2.13; pull request 197039 of pytorch/pytorch). What a custom operator returns is
saved, and never computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["snapshot"]


@torch.library.custom_op("normfuse::snapshot", mutates_args=())
def _copied(x: Tensor) -> Tensor:
    return x.clone()


@_copied.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def snapshot(buffer: Tensor) -> Tensor:
    """A copy where a graph that may run backward is compiled; elsewhere the buffer itself."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return _copied(buffer) if compiling and torch.is_grad_enabled() else buffer
