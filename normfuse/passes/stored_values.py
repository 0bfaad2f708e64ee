"""What stored statistics must not be: with them a norm returns numbers that no folded weight reproduces."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Node

from normfuse.folding import Premise, can_watch
from normfuse.folding.precision import Moments, may_cancel
from normfuse.ir.location import described
from normfuse.ir.program import Program
from normfuse.ir.region import Operands, norm_of
from normfuse.ir.sizes import tensor_of
from normfuse.passes.recipes import recipe_of, value_of
from normfuse.report import Refusal
from normfuse.torch_compat import outside_tracing

__all__ = [
    "refusal_of_cancellation",
    "refusal_of_large_bias",
    "refusal_of_overflow",
    "refusal_of_values",
    "shift_is_large",
    "watch_statistics",
]


def refusal_of_cancellation(node: Node, operands: Operands, eps: float, program: Program) -> Refusal | None:
    """Refuse to let readers subtract a mean that is large beside the deviation; the norm does it exactly."""
    found, fake = moments_of(operands, eps, program), tensor_of(node)
    if (node.name, "cancellation") in program.doubted:
        return _doubted("cancellation", node)
    if found is None or fake is None or not found.cancel(fake.dtype):
        return None
    return Refusal(
        "cancellation",
        f"the means that {described(node)} subtracts are large compared with the deviations, and what reads "
        "it would lose precision by subtracting them itself", node.name,
        "scale the values before the norm, or use float64",
    )  # fmt: skip


def refusal_of_large_bias(
    node: Node, operands: Operands, dtype: torch.dtype, program: Program
) -> Refusal | None:
    """Refuse to let readers add a bias that may cancel values; the norm does so before it rounds them."""
    if operands.shift is None:
        return None
    if (node.name, "large_bias") in program.doubted:
        return _doubted("large_bias", node)
    with outside_tracing():
        scale = None if operands.scale is None else value_of(program, operands.scale)
        if not may_cancel(scale, value_of(program, operands.shift), dtype):
            return None
    return Refusal(
        "large_bias",
        f"the bias of {described(node)} is so large beside its weight that it may cancel most of the values, "
        f"and what reads it in {str(dtype).removeprefix('torch.')} would lose precision by adding it itself",
        node.name, "use float64",
    )  # fmt: skip


def moments_of(operands: Operands, eps: float, program: Program) -> Moments | None:
    """None where the statistics are not at hand."""
    if operands.mean is None or operands.variance is None:
        return None
    with outside_tracing():
        given = (operands.mean, operands.variance, operands.scale, operands.shift)
        values = [None if node is None else value_of(program, node) for node in given]
        if any(value is not None and value.is_meta for value in values):
            return None
        return Moments.of(eps, *values)  # type: ignore[arg-type]


def shift_is_large(node: Node, operands: Operands, eps: float, program: Program) -> bool:
    """Whether a folded shift is better added behind the sum; see :meth:`Moments.shift_is_large`."""
    found = moments_of(operands, eps, program)
    return (node.name, "shift") in program.doubted or (found is not None and found.shift_is_large())


def watch_statistics(node: Node, operands: Operands, program: Program) -> Refusal | None:
    """Note which inputs a batch norm in training would write, unless nothing could tell of it.

    Offline the weights do not change, and with gradients the algebra runs at each call. What is written
    out in arithmetic is updated by operators that version counters see.
    """
    known, region = program.weights, norm_of(node)
    given = [n for n in (operands.mean, operands.variance) if n is not None]
    held = {s: known[s] for n in given for s in recipe_of(program, n)[1]}
    once = program.copies_tables or program.grad_enabled
    is_native = region is not None and any(n in region.spelling for n in ("batch_norm", "instance_norm"))
    for statistic, found in held.items():
        owner = None if found.owner is None else found.owner()
        if once or can_watch(found.value, owner):
            program.statistics.add(statistic)
        elif is_native:
            return Refusal(
                "statistics_untracked",
                f"a kernel may update {found.name} on {found.value.device} unseen", node.name,
                "use torch.nn.BatchNorm1d, 2d or 3d, which count their batches",
            )  # fmt: skip
    return None


def refusal_of_values(node: Node, operands: Operands, eps: float, program: Program) -> Refusal | None:
    """Refuse statistics that are not finite, negative variances, and variances of zero without eps.

    An eps that is a value of the graph stays in the norm and may depend on the call, so it is not looked at.
    """
    known = program.weights
    with outside_tracing():
        for operand in operands.as_args()[1:]:
            if operand is operands.eps or tensor_of(operand) is None:
                continue
            value = value_of(program, operand)
            name = known[operand].name if operand in known else operand.name
            if not bool(torch.isfinite(value).all()):
                return _bad(node, f"{name} holds numbers that are not finite")
            if operand is operands.variance and not bool((value >= 0).all()):
                return _bad(node, f"{name} holds a negative variance")
            if operand is operands.variance and not bool((value + eps > 0).all()):
                return _bad(node, f"{name} holds a variance of zero, and eps is zero")
    return None


def refusal_of_overflow(node: Node, asked: Iterable[Premise], program: Program) -> Refusal | None:
    """Refuse folded weights that their dtype cannot hold: there the norm's own arithmetic is wider."""
    if (node.name, "overflow") in program.doubted:
        return _doubted("overflow", node)
    for premise in asked:
        values = [[program.weights[s].value for s in sources] for sources in premise.sources]
        if program.values_later and any(value.is_meta for held in values for value in held):
            continue  # it is asked by whoever has the values
        if not premise.is_met(values):
            dtype = premise.question.dtype
            return Refusal(
                "overflow",
                f"with {described(node)} folded into it, a weight would overflow {dtype} or be too small to "
                "be precise", node.name, "keep the weights in a wider dtype",
            )  # fmt: skip
    return None


def _doubted(code: str, node: Node) -> Refusal:
    """For a graph that several layers or models share, or whose weights changed."""
    return Refusal(
        code, f"{described(node)} cannot be folded for other weights that this graph was called with",
        node.name,
        "compile the layers or models separately",
    )  # fmt: skip


def _bad(node: Node, message: str) -> Refusal:
    return Refusal("bad_statistics", message, node.name, "train the norm, or load statistics that are")
