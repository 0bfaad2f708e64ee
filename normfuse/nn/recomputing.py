"""What runs a layer a second time inside of the backward pass, and why a norm that smooths refuses it.

Activation checkpointing does, and so may a compiler that was asked to save memory. The second run reads
buffers that the first one has overwritten: it would normalize by other statistics and, in eager mode, count
the batch twice.
"""

from __future__ import annotations

import torch
import torch._functorch.config as partitioner
from torch import nn

from normfuse.errors import NormfuseError

__all__ = ["refuse_recomputation"]


def refuse_recomputation(layer: nn.Module) -> None:
    """Refuse to run in a backward pass, or to be compiled so that this happens.

    Raises:
        NormfuseError: saying what to do. Inside ``torch.compile`` it ends the graph, and eager mode runs.
    """
    name = type(layer).__name__
    if torch.compiler.is_compiling():
        # Dynamo traces no checkpointed region with a write to an object in it, and leaves it to eager mode.
        layer._is_compiled = True  # type: ignore[assignment]
        if partitioner.activation_memory_budget != 1 or partitioner.aggressive_recomputation:
            raise NormfuseError(
                f"{name} cannot be compiled for training with activation_memory_budget or "
                "aggressive_recomputation of torch._functorch.config: they recompute from buffers that have "
                "changed; leave them out"
            )
    elif torch._C._current_graph_task_id() != -1:
        raise NormfuseError(
            f"{name} is run again by activation checkpointing, where its smoothed statistics would count "
            "the batch twice and change the output; leave the layer out of the checkpointed region"
        )
