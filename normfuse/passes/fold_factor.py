"""A number in front of a norm goes into its eps, and one behind it into its weight and bias.

    k (w N_eps(c x) + b) = (k sgn(c) w) N_{eps / c^2}(x) + k b

for norms with statistics of what they read: scaled values, LayerNorm Scaling's 1 / sqrt(layer) behind a norm
(Sun et al. 2025, arXiv 2502.05795), and the sum ``alpha x + f(x)`` of DeepNorm (Wang et al. 2022, arXiv
2203.00555), where the weights that write f take 1 / alpha. Only where norms alone read what is multiplied, so
that the multiplication disappears. Numerics class: reassociated; a product that is not made is not rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from normfuse.analysis.factors import Factor, divided, factor_of, norms_behind, refusal_of_place
from normfuse.analysis.plan import Plan, leaves_of
from normfuse.ir.location import described
from normfuse.ir.region import norm_of, region_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import certificate
from normfuse.passes.own_factor import refusal_behind, take_behind
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_plan
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.scaled_norms import refusal_before, refusal_of_operand, take_before
from normfuse.passes.work import Work
from normfuse.report import Refusal, Site

__all__ = ["FOLD_FACTOR", "fold_factor"]


def fold_factor(work: Work) -> None:
    """Take what is multiplied before and behind norms into them; record a reason for each that stays."""
    folding = _Folding(work)
    for node in work.sites:
        folding.behind(node)
    for node in reversed(list(work.program.gm.graph.nodes)):
        if not folding.placement.is_erased(node):
            folding.before(node)
    for node, taken in folding.taken.items():
        region = region_of(node)
        held = [*node.all_input_nodes[1:], *taken.weights]
        proof = certificate(FOLD_FACTOR, (taken.names, [node.name]), held, work)
        work.sites[node].fold(FOLD_FACTOR.name, proof, left=region.spec)


@dataclass
class _Taken:
    """What one norm took: the names of what was multiplied, and the weights that changed for it."""

    names: list[str] = field(default_factory=list)
    weights: list[Node] = field(default_factory=list)


class _Folding:
    """Takes numbers into the norms of one program, one after the other."""

    def __init__(self, work: Work) -> None:
        self.taken: dict[Node, _Taken] = {}
        self._work, self._program = work, work.program
        self.placement = Placement(work.program.gm.graph)
        self._weights = weights_of(work)

    def behind(self, norm: Node) -> None:
        """The number that multiplies what a norm gives."""
        region = norm_of(norm)
        if region is None or region.spec.post_factor == 1 or not self._work.may(norm, FOLD_FACTOR.name):
            return
        refusal = refusal_behind(norm, self._program, self._weights)
        refusal = refusal or take_behind(norm, self.placement, self._program)
        self._settle([norm], norm.name, refusal)

    def before(self, product: Node) -> None:
        """The number that multiplies a value, for all norms that read the product."""
        factor, norms = factor_of(product), list[Node]()
        refusal = None if factor is None else norms_behind(factor.value, norms)
        if factor is None or not norms:
            return
        plan = refusal or self._refuse(factor, norms) or self._beside(factor, norms[0])
        if isinstance(plan, Refusal):
            self._settle(norms, product.name, plan)
            return
        changed = [] if plan is None else [leaf.node for leaf in leaves_of(plan)]
        for norm in norms:
            take_before(norm, factor, self.placement, self._program)
        if plan is not None and factor.beside is not None:
            self.placement.substitute([(factor.value, factor.beside, plan)])
        product.replace_all_uses_with(factor.of)
        self.placement.erase(product)
        self._settle(norms, product.name, None, changed)

    def _settle(
        self, norms: list[Node], name: str, refusal: Refusal | None, changed: Sequence[Node] = ()
    ) -> None:
        """Note what happened to norms, with the weights that changed besides their own."""
        self._weights.admit(self.placement.made)
        for norm in norms:
            if refusal is not None:
                self._work.sites[norm].refuse(refusal, FOLD_FACTOR.name)
            else:
                taken = self.taken.setdefault(norm, _Taken())
                taken.names.append(name)
                taken.weights += changed

    def _refuse(self, factor: Factor, norms: list[Node]) -> Refusal | None:
        refusal = refusal_of_place(factor, self._weights)
        refusal = refusal or refusal_of_operand(factor, self._program, self._weights)
        for norm in norms:
            refusal = refusal or self._refuse_norm(factor, norm)
        return refusal

    def _refuse_norm(self, factor: Factor, norm: Node) -> Refusal | None:
        if not self._work.may(norm, FOLD_FACTOR.name):
            message = f"{described(norm)} must stay as it is, and reads the values multiplied"
            return Refusal("raw_reader", message, norm.name)
        return refusal_before(norm, factor, self._program, self._weights)

    def _beside(self, factor: Factor, norm: Node) -> Plan | Refusal | None:
        """How what is added to a product comes to be divided by the factor; None where nothing is."""
        if factor.beside is None or isinstance(factor.by, Node):
            return None
        plan = divided(factor.value, factor.beside, factor.by, self._weights)
        if isinstance(plan, Refusal):
            return plan
        return rest_on_plan(self._program, norm, plan, factor.value, self.placement) or plan


def _waits(site: Site) -> bool:
    return bool(site.spec["post_factor"] != 1)


FOLD_FACTOR = Rule(
    "fold_factor",
    Numerics.REASSOCIATED,
    "k (w N_eps(c x + f) + b) = (k sgn(c) w) N_{eps / c^2}(x + f / c) + k b",
    "Wang et al. 2022, arXiv 2203.00555; Sun et al. 2025, arXiv 2502.05795",
    (
        "one number: it multiplies all that the norm reads, or all that it gives",
        "norms alone: nothing else reads what is multiplied",
        "changed weights: each takes its number, in its own copy",
    ),
    run=fold_factor,
    waits=_waits,
)
