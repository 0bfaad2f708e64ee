"""A norm with what stands around it, called on the device that is here; in training with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves, tree_map_only

from normfuse.lowering.excerpt import Excerpt

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """What an excerpt is called with.

    Attributes:
        inputs: numbers that lie as its fake tensors do; in training those of floating point take a gradient.
        arriving: a gradient for each result; none in inference.
    """

    inputs: list[torch.Tensor]
    arriving: list[torch.Tensor]

    @classmethod
    def of(cls, cut: Excerpt, trains: bool) -> Trial:
        inputs = [_random(one, seed) for seed, one in enumerate(cut.inputs)]
        results = [node.meta["val"] for node in cut.module.graph.output_node().all_input_nodes]
        takes = [trains and one.is_floating_point() for one in inputs]
        return cls(
            [one.requires_grad_(wanted) for one, wanted in zip(inputs, takes, strict=True)],
            [_random(one, len(inputs) + place) for place, one in enumerate(results)] if trains else [],
        )

    def step(self, run: Callable[..., Any]) -> Callable[[], list[torch.Tensor]]:
        """What calls ``run`` and gives its results, and the gradients of the inputs behind them."""
        return lambda: _called(run, self.inputs, self.arriving)

    def exact(self, module: GraphModule) -> list[torch.Tensor]:
        """The same in float64, whatever the graph casts to."""
        inputs = [_widened(one.detach()).requires_grad_(one.requires_grad) for one in self.inputs]
        return _called(_Exact(module).run, inputs, [_widened(one) for one in self.arriving])


def _called(
    run: Callable[..., Any], inputs: Sequence[torch.Tensor], arriving: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    if not arriving:
        return list(tree_leaves(run(*inputs)))
    with torch.enable_grad():
        results = tree_leaves(run(*inputs))
        pairs = [pair for pair in zip(results, arriving, strict=True) if pair[0].requires_grad]
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            [one for one in inputs if one.requires_grad],
            [gradient for _, gradient in pairs],
            materialize_grads=True,
        )
    return [*results, *found]


class _Exact(Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.dtype, _wide, (args, dict(kwargs)))
        return super().call_function(target, args, kwargs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _widened(value: torch.Tensor) -> torch.Tensor:
    return value.to(_wide(value.dtype))


def _random(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Numbers that lie as a fake tensor does, in memory of their own; the device's random state stays."""
    last = sum((size - 1) * step for size, step in zip(like.shape, like.stride(), strict=True))
    count = last + 1 if like.numel() else 0
    if like.is_floating_point():
        generator = torch.Generator(like.device).manual_seed(seed)
        held = torch.randn(count, generator=generator, dtype=like.dtype, device=like.device)
    else:
        held = torch.zeros(count, dtype=like.dtype, device=like.device)
    return held.as_strided(like.shape, like.stride())
