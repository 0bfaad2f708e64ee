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

from normfuse.analysis.absorb import absorb, refuse_widened
from normfuse.analysis.channel_map import Diagonal
from normfuse.analysis.factors import Factor, factor_of, norms_behind, refusal_of_place
from normfuse.analysis.plan import Plan, redirected
from normfuse.analysis.weights import divided_refusal
from normfuse.ir.location import described
from normfuse.ir.readers import value_readers
from normfuse.ir.region import norm_of, region_of
from normfuse.ir.sizes import rank_of, tensor_of
from normfuse.passes.decisions import weights_of
from normfuse.passes.evidence import certificate
from normfuse.passes.large_taps import leaves_of, refusal_of_large_tap
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_range
from normfuse.passes.rule import Numerics, Rule
from normfuse.passes.scaled_norms import refusal_before, refusal_behind, take_before, take_behind
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
        if self._weights.divided:
            return divided_refusal(factor.product)
        for value in (factor.value, factor.product, factor.of, factor.beside):
            if value is not None and self._weights.is_written(value):
                return Refusal("mutated", f"the graph writes in place to {described(value)}", value.name)
        refusal = refusal_of_place(factor)
        if refusal is None and isinstance(factor.by, Node):
            refusal = self._refuse_operand(factor, factor.by)
        for norm in norms:
            refusal = refusal or self._refuse_norm(factor, norm)
        return refusal

    def _refuse_norm(self, factor: Factor, norm: Node) -> Refusal | None:
        if not self._work.may(norm, FOLD_FACTOR.name):
            message = f"{described(norm)} must stay as it is, and reads the values multiplied"
            return Refusal("raw_reader", message, norm.name)
        return refusal_before(norm, factor, self._program, self._weights)

    def _refuse_operand(self, factor: Factor, by: Node) -> Refusal | None:
        """Why an eps cannot be made of what multiplies, which is no number of the graph, if so."""
        name = f"{described(by)}, by which {described(factor.product)} multiplies"
        value = tensor_of(by)
        if by not in self._weights or value is None or not value.is_floating_point():
            refusal = self._weights.varies(by)
            return refusal or Refusal("computed_factor", f"{name}, depends on the call", factor.product.name)
        if self._program.grad_enabled and self._weights.records_gradients(by):
            return Refusal("trains", f"gradients are recorded for {name}", factor.product.name)
        if self._program.copies_tables or factor.beside is not None:
            message = f"{name}, is a tensor, and with an eps made of it the norm would be no single operator"
            return Refusal("eps_operand", message, factor.product.name, "multiply by a Python number")
        return self._weights.refusal(by)

    def _beside(self, factor: Factor, norm: Node) -> Plan | Refusal | None:
        """How what is added to a product comes to be divided by the factor; None where nothing is."""
        other, by = factor.beside, factor.by
        if other is None or isinstance(by, Node):
            return None
        if self._program.grad_enabled:
            message = f"gradients are recorded, and the weights that write {described(other)} may train"
            return Refusal("trains", message, other.name)
        if other not in self._weights and len(value_readers(other)) > 1:
            message = f"{described(other)} is also read elsewhere, unchanged"
            return Refusal("raw_reader", message, other.name)
        maps, axes = (Diagonal(1 / by),), reversed(range(rank_of(other) or 1))
        plans = [
            refuse_widened(factor.value, other) or absorb(other, axis, maps, self._weights) for axis in axes
        ]
        plan = next((p for p in plans if not isinstance(p, Refusal)), plans[0])
        return plan if isinstance(plan, Refusal) else self._refuse_weights(norm, factor, plan) or plan

    def _refuse_weights(self, norm: Node, factor: Factor, plan: Plan) -> Refusal | None:
        changed = [part.operand for part in redirected(plan)]
        if len(set(changed)) < len(changed):
            message = f"{described(factor.value)} is made of several parts of one value"
            return Refusal("raw_reader", message, factor.value.name)
        for leaf in leaves_of(plan):
            refusal = refusal_of_large_tap(norm, leaf, self.placement, self._program)
            if refusal is not None:
                return refusal
        made = self.placement.weights(plan, factor.value)
        return rest_on_range(self._program, norm, made, self.placement)


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
