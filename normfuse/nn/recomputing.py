"""Values of buffers that the forward pass reads and then writes, where something computes them again.

Activation checkpointing runs a layer a second time in the backward pass, and a compiler computes there again
what it did not save (pytorch/pytorch#197039, seen with 2.13). Both read the buffers as they are by then: the
gradient is wrong, without a word.

By default the partitioner of AOTAutograd saves what an operator that it does not know returns. Asked for less
memory it saves nothing but inputs, and Dynamo marks all of a checkpointed region to be computed again. In
both cases the layers do not become part of the graph, and eager mode runs them.
"""

from __future__ import annotations

import torch
import torch._functorch.config as partitioner
from torch import Tensor, nn

from normfuse.errors import NormfuseError

__all__ = ["kept", "refuse_second_run"]


@torch.library.custom_op("normfuse::kept", mutates_args=())
def _copied(values: list[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


@_copied.register_fake
def _(values: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(value) for value in values]


@_copied.register_vmap
def _(
    info: object, in_dims: tuple[list[int | None]], values: list[Tensor]
) -> tuple[list[Tensor], list[int | None]]:
    return _copied(values), in_dims[0]


_copied.register_autograd(lambda ctx, grads: grads)


def kept(layer: nn.Module, *values: Tensor) -> tuple[Tensor, ...]:
    """What is made of buffers that ``layer`` is about to write, as the backward pass has to see it.

    Raises:
        NormfuseError: inside of ``torch.compile``, where the compiler was asked to compute it again. It ends
            the graph, and eager mode runs; with ``fullgraph=True`` the caller sees it.
    """
    if not torch.compiler.is_compiling() or _is_exporting() or not torch.is_grad_enabled():
        return values
    _refuse_less_memory(layer)
    # Dynamo traces no checkpointed region with a write to an object in it, and leaves it to eager mode.
    layer._is_compiled = True  # type: ignore[assignment]
    return tuple(_copied(list(values)))


def _is_exporting() -> bool:
    """Whether there is no backward pass of this graph; of a strict export it is not known before 2.13."""
    return torch.compiler.is_exporting() and (_TELLS_EXPORTS or not torch.compiler.is_dynamo_compiling())


#: Dynamo of 2.11 takes every compilation for an export.
_TELLS_EXPORTS = torch.torch_version.TorchVersion(torch.__version__) >= "2.13"


def _refuse_less_memory(layer: nn.Module) -> None:
    saves = partitioner.ban_recompute_not_in_allowlist and not partitioner.aggressive_recomputation
    if partitioner.activation_memory_budget != 1 or not saves:
        raise NormfuseError(
            f"{type(layer).__name__} cannot be compiled for training with activation_memory_budget, "
            "aggressive_recomputation or ban_recompute_not_in_allowlist of torch._functorch.config changed: "
            "they recompute from buffers that have changed by then; leave them out"
        )


def refuse_second_run(layer: nn.Module) -> None:
    """Refuse activation checkpointing of a layer that the second run would give another output.

    Raises:
        NormfuseError: in a backward pass.
    """
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise NormfuseError(
            f"{type(layer).__name__} is run again by activation checkpointing, where its statistics would "
            "count the batch twice and change the output; leave the layer out of the checkpointed region"
        )
