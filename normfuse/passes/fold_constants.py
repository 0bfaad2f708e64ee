"""Norms of weights are constants: they are computed once, with the weights that they are made of.

    conv(x, standardise(W))  =>  conv(x, folded),    folded = standardise(W)     (Qiao et al. 2019, eq. 2)

Numerics class: rounding; the standardised weight is computed in float64 and rounded once.
"""

from __future__ import annotations

from torch.fx import Node

from normfuse.analysis.weights import WeightValues
from normfuse.folding.recipe import FOLD
from normfuse.ir.dead_code import drop_assertions
from normfuse.ir.effects import Effects
from normfuse.ir.location import described
from normfuse.ir.region import norm_of
from normfuse.lowering.inline import inline
from normfuse.passes.evidence import certificate
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.standardised import standardised
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["FOLD_CONSTANTS", "fold_constants"]


def fold_constants(work: Work) -> None:
    """Mark every norm of weights, and what is made of it alone, to be computed once."""
    graph, made = work.program.gm.graph, list[Node]()
    while found := _inlined(work, WeightValues(work.program, Effects(graph))):
        made += found  # what reads a norm of weights is a weight from now on
    for node, site in work.sites.items():
        if site.kind == "weight_standardization":
            site.refuse(_moving_refusal(node), FOLD_CONSTANTS.name)
    weights = WeightValues(work.program, Effects(graph))
    _mark(made, weights)
    _mark(_unnamed(work, weights), weights)


def _unnamed(work: Work, weights: WeightValues) -> list[Node]:
    """The operators of standardised weights that are no norm with a description."""
    made: list[Node] = []
    for reader in work.program.gm.graph.nodes:
        found = standardised(reader, weights)
        if found is None or found.value in made:
            continue
        site = found.site()
        work.report.sites.append(site)
        if not _is_folded(site, found.value, found.held, work, weights):
            continue
        for value in found.inner:
            drop_assertions(value)
        made += found.inner
    return made


def _inlined(work: Work, weights: WeightValues) -> list[Node]:
    """The operators of the norms whose operands are known to be weights."""
    made: list[Node] = []
    for node, site in list(work.sites.items()):
        region = norm_of(node)
        if region is None or not work.may(node, FOLD_CONSTANTS.name):
            continue
        if not all(operand in weights for operand in node.all_input_nodes):
            continue
        if not _is_folded(site, node, node.all_input_nodes, work, weights):
            continue
        del work.sites[node]
        made += inline(work.program.gm, node, region)
    return made


def _is_folded(site: Site, value: Node, held: list[Node], work: Work, weights: WeightValues) -> bool:
    """Whether a norm is a constant, and its record says so; else that has the reason."""
    refusal = weights.refusal(value) or _grad_refusal(work, value)
    if refusal is not None:
        site.refuse(refusal, FOLD_CONSTANTS.name)
        return False
    names = [node.name for node in held]
    site.fold(FOLD_CONSTANTS.name, certificate(FOLD_CONSTANTS, (names, names), held, work))
    return True


def _moving_refusal(node: Node) -> Refusal:
    """Why a norm of a weight is no constant where no weight forbids it: something else scales it."""
    message = f"a factor by which {described(node)} scales a standardised weight depends on the call"
    return Refusal("computed_statistics", message, node.name, "scale after the norm instead")


def _grad_refusal(work: Work, node: Node) -> Refusal | None:
    if not work.program.grad_enabled:
        return None
    message = "gradients are recorded, so the weight is standardised at each step"
    return Refusal("grad_enabled", message, node.name, "for inference, call the model under torch.no_grad()")


def _mark(made: list[Node], weights: WeightValues) -> None:
    """The operators of the norms, and all that follows on the way to where it meets an input."""
    stack = list(made)
    while stack:
        node = stack.pop()
        if node in weights and FOLD not in node.meta:
            node.meta[FOLD] = True
            stack.extend(node.users)


def _waits(site: Site) -> bool:
    return site.kind == "weight_standardization"


FOLD_CONSTANTS = Rule(
    "fold_constants",
    Numerics.ROUNDING,
    "conv(x, standardise(W)) = conv(x, V),  V = standardise(W)",
    "Qiao et al. 2019, arXiv 1903.10520, equation 2",
    (
        "a constant: all that the norm reads is made of weights",
        "computed once: nothing writes to the weights, and no gradients are recorded",
        "changed weights: each is read through the result, in a copy",
    ),
    run=fold_constants,
    waits=_waits,
)
