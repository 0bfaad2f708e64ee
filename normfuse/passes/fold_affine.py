"""Norms with stored statistics vanish into the weights before, behind or beside them.

    A(x) = D (x - mean) + shift,    D = diag(scale / sqrt(variance + eps))
    A(W a + b) = (D W) a + A(b)                                     into the writer
    W A(x) + b = (W D) x + (b + W A(0))                             into every reader
    A(x) + f = D (x - mean + f / D) + shift                         over a sum on the way to one
    A(x) + W x + b = (D + W) x + (b + A(0))                         into a weight beside it
    A(W x + b + x) = D (W + I) x + A(b)                             into a writer, with what it read

Exact for a linear or convolution with any strides, dilation and groups (Markus, 2018, and many others);
zeros around the input of a reading convolution are not mapped, so there the norm stays. Numerics class:
reassociated.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.absorb import absorb_alone
from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.as_it_is import refusal_of_parts
from normfuse.analysis.beside import beside
from normfuse.analysis.forward import Pushed, push
from normfuse.ir.location import described
from normfuse.ir.region import region_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import Certificate
from normfuse.passes.into_neighbours import IntoNeighbours
from normfuse.passes.place import Placement
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.stored_conditions import refuse_stored
from normfuse.passes.stored_values import refusal_of_cancellation
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["FOLD_AFFINE", "fold_affine"]

#: Reasons that lie in what a norm reads; where its readers have a more particular one, that is named.
_INHERENT = ("stream_enters_graph", "nonlinear_writer", "post_norm", "raw_reader")
_PARTICULAR = ("zero_padding", "no_bias", "shift_blocked", "impure_operator", "weight_mutated")


def fold_affine(work: Work) -> None:
    """Fold every norm with stored statistics that weights can take; record a reason for each that stays."""
    into = IntoNeighbours(work, weights_of(work), Placement(work.program.gm.graph), FOLD_AFFINE)
    pending = [
        node for node in work.sites if region_of(node).spec.is_stored and work.may(node, FOLD_AFFINE.name)
    ]
    while pending:
        left = [node for node in pending if not _vanishes(node, into)]
        if len(left) == len(pending):
            return
        pending = left[::-1]  # what was folded before is a weight for the next


def _vanishes(node: Node, into: IntoNeighbours) -> bool:
    """Whether the norm could be folded; else its site has the reason of the last attempt."""
    site = into.work.sites[node]
    site.refusal = None
    done = _fold(node, into)
    if isinstance(done, Refusal):
        site.refuse(done, FOLD_AFFINE.name)
        return False
    site.fold(FOLD_AFFINE.name, done)
    del into.work.sites[node]
    into.weights.admit(into.placement.made)
    return True


def _fold(node: Node, into: IntoNeighbours) -> Certificate | Refusal:
    """Fold the norm where it can be, and say what that rests on."""
    region, program, weights = region_of(node), into.work.program, into.weights
    operands, eps = region.operands(node), region.spec.eps
    refusal = refuse_stored(node, weights, program)
    if refusal is not None:
        return refusal
    if eps is None:
        return Refusal("unusual_form", f"the eps of {described(node)} is not a number", node.name)
    axis, *_ = region.other_axes(node)
    maps = (Standardise.of(operands, eps),)
    before = absorb_alone(operands.source, axis, maps, weights)
    if not isinstance(before, Refusal):
        before = refusal_of_parts(described(operands.source), operands.source, [before]) or before
    if not isinstance(before, Refusal):
        return into.writers(node, before)
    sibling = beside(node, operands.source, axis, weights)
    behind: Pushed | Refusal = Pushed([], [])
    if sibling is None:
        behind = push(node, axis, maps, weights, crosses_sums=not program.grad_enabled)
    if isinstance(behind, Refusal):
        return _both(before, behind)
    refusal = refusal_of_cancellation(node, operands, eps, program)
    if refusal is not None:
        return refusal
    return into.readers(node, behind) if sibling is None else into.sibling(node, sibling, maps[0])


def _both(before: Refusal, behind: Refusal) -> Refusal:
    """Neither what writes the values nor what reads them can take the norm."""
    first = behind if before.code in _INHERENT and behind.code in _PARTICULAR else before
    return Refusal(
        first.code,
        f"before the norm, {before.message}; after it, {behind.message}",
        first.node,
        first.remedy,
    )


def _waits(site: Site) -> bool:
    return site.kind != "weight_standardization" and site.spec["statistics"] != "input"


FOLD_AFFINE = Rule(
    "fold_affine",
    Numerics.REASSOCIATED,
    "A(x) = D (x - mean) + shift is affine,  D = diag(scale / sqrt(variance + eps) + skip) per channel",
    "Ioffe, Szegedy 2015, arXiv 1502.03167, algorithm 2; Ding et al. 2021, arXiv 2101.03697, section 3.3",
    (
        "stored statistics: what the norm scales and shifts by is made of weights alone",
        "reached in full: every value between the norm and these operators is theirs alone",
        "changed weights: each takes D, and a bias the shift, in its own copy",
    ),
    {
        "before": "A(W a + b) = (D W) a + A(b)",
        "behind": "W A(x) + b = (W D) x + (b + W A(0))",
        "beside": "A(x) + W x + b = (D + W) x + (b + A(0))",
    },
    run=fold_affine,
    waits=_waits,
)
