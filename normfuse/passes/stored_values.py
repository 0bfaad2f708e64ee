"""What stored statistics must not be: with them a norm returns numbers that no folded weight reproduces."""

from __future__ import annotations

import torch
from torch.fx import Node

from normfuse.folding import can_watch
from normfuse.ir.program import Program
from normfuse.ir.region import Operands
from normfuse.report import Refusal
from normfuse.torch_compat import outside_tracing

__all__ = ["refusal_of_values", "watch_statistics"]


def watch_statistics(node: Node, operands: Operands, program: Program) -> Refusal | None:
    """Note which inputs a batch norm in training would write, unless nothing could tell of it.

    Offline the weights do not change, and with gradients the algebra runs at each call.
    """
    known = program.weights
    held = {n: known[n] for n in (operands.mean, operands.variance) if n is not None and n in known}
    once = program.copies_tables or program.grad_enabled
    for found in held.values():
        owner = None if found.owner is None else found.owner()
        if not once and not can_watch(found.value, owner):
            return Refusal(
                "statistics_untracked",
                f"a kernel may update {found.name} on {found.value.device} unseen", node.name,
                "use torch.nn.BatchNorm, which counts its batches",
            )  # fmt: skip
    program.statistics.update(held)
    return None


def refusal_of_values(node: Node, operands: Operands, eps: float, program: Program) -> Refusal | None:
    """Refuse statistics that are not finite, negative variances, and variances of zero without eps."""
    known = program.weights
    with outside_tracing():
        for operand in operands.as_args()[1:]:
            value = known[operand].value if operand in known else None
            if value is not None and not bool(torch.isfinite(value).all()):
                return _bad(node, f"{known[operand].name} holds numbers that are not finite")
            if value is not None and operand is operands.variance and not bool((value >= 0).all()):
                return _bad(node, f"{known[operand].name} holds a negative variance")
            if value is not None and operand is operands.variance and not bool((value + eps > 0).all()):
                return _bad(node, f"{known[operand].name} holds a variance of zero, and eps is zero")
    return None


def _bad(node: Node, message: str) -> Refusal:
    return Refusal("bad_statistics", message, node.name, "train the norm, or load statistics that are")
