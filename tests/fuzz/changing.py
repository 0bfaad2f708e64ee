"""After any change of the model's weights the folded ones are those that a new fold would make.

The writers are those that raise no version counter, or not reliably: collectives, kernels that update
statistics, memory that is filled under a preserved counter, ``.data``, NumPy.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from normfuse.backends.ready import _slot
from normfuse.folding import Slots, watch_writers
from normfuse.ir import Program
from normfuse.options import Options
from normfuse.passes.pipeline import run_pipeline

__all__ = ["CHANGES", "stays_current"]


def _edit(weight: Tensor) -> None:
    weight.detach().view(-1)[-1:].mul_(2.0).add_(1.0)


def _through_data(weight: Tensor) -> None:
    weight.data += torch.rand_like(weight)


def _numpy(weight: Tensor) -> None:
    weight.detach().numpy()[...] += 1.0


def _new_memory(weight: Tensor) -> None:
    weight.data = torch.rand_like(weight)


@cache
def _group() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def _scatter(weight: Tensor) -> None:
    _group()
    dist.scatter(weight.detach(), [torch.rand_like(weight)], 0)


def _gather(weight: Tensor) -> None:
    _group()
    with torch.inference_mode():
        dist.all_gather([weight.detach()], torch.rand_like(weight))


def _asynchronous(weight: Tensor) -> None:
    _group()
    dist.all_to_all_single(weight.detach(), torch.rand_like(weight), async_op=True).wait()


def _preserved(weight: Tensor) -> None:
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight.view(-1)[:1] += 1.0


def _batch_norm(weight: Tensor) -> None:
    """A kernel that writes a running mean, here over all entries of the weight."""
    mean = weight.detach().view(-1)
    F.batch_norm(torch.rand(3, mean.numel(), dtype=mean.dtype), mean, torch.ones_like(mean), training=True)


CHANGES: tuple[Callable[[Tensor], None], ...] = (
    _edit, _through_data, _numpy, _new_memory, _scatter, _gather, _asynchronous, _preserved, _batch_norm,
)  # fmt: skip


def stays_current(program: Program, seed: int) -> None:
    """Change sources of folded weights, one writer after another, and look the folded weights up again.

    ``program`` is rewritten in place; its weights are not touched.

    Raises:
        AssertionError: naming the writer.
    """
    watch_writers()
    _, folded = run_pipeline(program, Options.checked({}))
    if not folded:
        return
    positions = {i.node: place for place, i in enumerate(program.inputs)}
    values = copy.deepcopy([i.value for i in program.inputs])
    slots = Slots([_slot(one, program, positions) for one in folded])
    slots.tensors(values)
    places = sorted({positions[s] for one in folded for s in one.sources})
    drawn = random.Random(seed)
    for _ in range(3):
        weight, change = values[drawn.choice(places)], drawn.choice(CHANGES)
        if weight.is_floating_point() and weight.is_contiguous() and weight.numel():
            change(weight)
        for one, tensor in zip(folded, slots.tensors(values), strict=True):
            fresh = one.recipe.compute([values[positions[s]] for s in one.sources])
            assert torch.equal(tensor, fresh), f"{one.node.name} is stale after {change.__name__}"
