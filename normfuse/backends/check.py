"""``normfuse.verify = "output"``: compare a rewritten graph with the original before it is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only

from normfuse.errors import VerificationError
from normfuse.torch_compat import autocast_off, outside_tracing
from normfuse.verify.judge import judge
from normfuse.verify.oracle import run_wide

__all__ = ["check_output"]


def check_output(
    original: GraphModule,
    wide: GraphModule,
    rewritten: GraphModule,
    inputs: Sequence[Any],
    folded: Sequence[torch.Tensor],
) -> None:
    """Run both graphs eagerly on the example inputs, beside ``wide``, the original in float64.

    Raises:
        VerificationError: when an output is further from float64 than the error budget allows.
    """
    with outside_tracing(), torch.random.fork_rng():
        oracle = run_wide(wide, _copies(inputs))
        reference = tree_leaves(original(*_copies(inputs)))
        with autocast_off():
            candidate = tree_leaves(rewritten(*_copies(inputs), *folded))
    for index, (ours, theirs, exact) in enumerate(zip(candidate, reference, oracle, strict=True)):
        if isinstance(theirs, torch.Tensor) and isinstance(exact, torch.Tensor):
            leaf = judge(f"output {index}", theirs, ours, exact)
            if not leaf.ok:
                raise VerificationError(
                    f"output {index} of the rewritten graph is {leaf.error_ratio:.3g} times as far from "
                    "float64 as the original"
                )


def _copies(inputs: Sequence[Any]) -> list[Any]:
    """Fresh tensors, since a graph may write to its inputs."""
    copied: list[Any] = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), list(inputs))
    return copied
