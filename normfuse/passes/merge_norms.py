"""Norms that are one function of one value are computed once, and all that read them read that one.

    f(N(x)) + g(N(x)) = f(y) + g(y),    y = N(x)

In inference that is what is left of two norms behind one value, as in the parallel blocks of GPT-NeoX, once
:mod:`normfuse.passes.fold_scale` has given the weight and bias of each to its own readers. Bits are those of
before, since both are the same operators on the same operands.

Norms that differ in what follows their core share the core, and each multiplies and adds behind it, where a
compiler puts that into the kernels that read it. As written, Inductor makes passes over the value for the
statistics of each in inference, and for the derivative of each in training. A program that is run operator
by operator keeps them: passes for weights and biases would cost more than is saved. Numerics class: rounding.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch.fx import Node

from normfuse.ir.effects import is_returned
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, norms_in
from normfuse.passes.bodies import are_alike
from normfuse.passes.idle import refuse_mixed_modes
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.shared_cores import give_value, share_cores
from normfuse.passes.views import equal_views
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["MERGE_NORMS", "merge_norms"]


def merge_norms(work: Work) -> None:
    """Let equal norms of one value be the first of them, and others share what is equal in them."""
    first: dict[Hashable, tuple[Node, NormRegion]] = {}
    views = {} if work.program.grad_enabled else equal_views(work.program.gm.graph)
    for node, region in norms_in(work.program.gm):
        if not work.may(node, MERGE_NORMS.name):
            continue
        read = tuple(views.get(operand, operand) for operand in region.operands(node).as_args())
        kept, spelling = first.setdefault((region.spec, read), (node, region))
        if kept is node:
            continue
        refusal = _refuse_spelling(kept, node, spelling, region) or _refuse_memory(kept, node, work)
        if refusal is None:
            give_value(node, kept, kept, work, MERGE_NORMS)
        else:
            work.sites[node].refuse(refusal, MERGE_NORMS.name)
    if not work.program.copies_tables and work.options.lower != "triton":
        share_cores(work, MERGE_NORMS, views)


def _refuse_spelling(kept: Node, node: Node, one: NormRegion, other: NormRegion) -> Refusal | None:
    if are_alike(one.body, other.body):
        return None
    message = f"{described(node)} is written in other operators than {described(kept)}, which round otherwise"
    return Refusal("other_spelling", message, node.name, "write both norms alike")


def _refuse_memory(kept: Node, node: Node, work: Work) -> Refusal | None:
    """Why the values of two norms cannot lie in one memory, if so: who wrote to one would write to both.

    What is written to inside of the graph is no norm any more, so that only the caller is left.
    """
    seen = [one for one in (kept, node) if is_returned(one)]
    if not seen or (len(seen) == 1 and not work.program.grad_enabled):
        return None
    message = (
        f"{described(seen[-1])} is returned, and the caller may write to what would be another norm, too"
    )
    return Refusal("norm_is_output", message, seen[-1].name)


MERGE_NORMS = Rule(
    "merge_norms",
    Numerics.ROUNDING,
    "f(N(x)) + g(N(x)) = f(y) + g(y),  y = N(x)",
    "Cocke 1970, Global common subexpression elimination, SIGPLAN Notices 5(7)",
    (
        "one function: the same statistics of the same value with the same eps, in the same operators",
        "computed before: the norm that stays runs first, and nothing writes to what both read",
        "one memory: at most one of them is returned to the caller, and none where gradients are recorded",
        "own weights: what a norm multiplies by and adds, by itself or behind what it shares, stays its own",
    ),
    run=merge_norms,
    waits=lambda site: False,
    idle=refuse_mixed_modes,
)
