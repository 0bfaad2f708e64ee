"""A norm with stored statistics vanishes: its neighbours take what it does, or give the reason why not.

Each method changes the graph as a whole or not at all, and writes down what the change rests on before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch.fx import Node

from normfuse.analysis.affine_map import Standardise
from normfuse.analysis.as_it_is import refusal_of_parts
from normfuse.analysis.beside import Beside
from normfuse.analysis.forward import Pushed
from normfuse.analysis.own_tap import OwnTap
from normfuse.analysis.plan import Leaf, Plan, leaves_of, linear_parts
from normfuse.analysis.weights import WeightValues
from normfuse.folding import Premise
from normfuse.ir.calls import aten, set_arguments
from normfuse.ir.effects import aliased_by, is_returned
from normfuse.ir.emit import call
from normfuse.ir.location import described
from normfuse.ir.refresh import refresh_readers
from normfuse.ir.region import region_of
from normfuse.ir.sizes import lies_alike, static_size
from normfuse.passes.evidence import Certificate, folded_before, folded_behind, folded_beside
from normfuse.passes.large_taps import refusal_of_large_taps
from normfuse.passes.place import Placement
from normfuse.passes.premises import rest_on_plan, rest_on_precision, rest_on_range, small_shift
from normfuse.passes.rule import Rule
from normfuse.passes.settle_shifts import note_shift, note_shifts
from normfuse.passes.stored_conditions import keeps_its_order, refuse_stored
from normfuse.passes.stored_values import shift_is_large
from normfuse.passes.take_maps import refusal_of_division, take_maps
from normfuse.passes.work import Work
from normfuse.report import Refusal

__all__ = ["IntoNeighbours"]


@dataclass(frozen=True)
class IntoNeighbours:
    """Gives norms to the weights around them, as a rule says; what that rests on is its certificate."""

    work: Work
    weights: WeightValues
    placement: Placement
    rule: Rule

    def writers(self, node: Node, plan: Plan) -> Refusal | Certificate:
        """The weights that write what the norm reads take it."""
        proof = folded_before(self.rule, node, plan, self.work)
        refusal = rest_on_plan(self.work.program, node, plan, node, self.placement)
        if refusal is not None:
            return refusal
        note_shifts(plan, *self._shift(node))
        source = region_of(node).operands(node).source
        made = self._replace(node, source, self.placement.make(plan, node))
        self.work.written[made] = self.work.sites[node]
        return proof

    def sibling(self, node: Node, found: Beside, mapping: Standardise) -> Refusal | Certificate:
        """A weight that reads what the norm reads, and whose result the norm's is added to, takes it."""
        proof = folded_beside(self.rule, node, found, self.work)
        tap = OwnTap(linear_parts((mapping, *found.maps)), found.groups)
        refusal = self._refuse_taps(node, [Leaf(found.weight, 0, (tap,))])
        if refusal is not None:
            return refusal
        changed = self.placement.beside(found, mapping)
        refusal = self._refuse_made(node, changed.values())
        if refusal is not None:
            return refusal
        self._rest_on_precision(node)
        set_arguments(found.reader, changed)
        note_shift(found.reader, *self._shift(node))
        self._forget_written(found)
        found.sum.replace_all_uses_with(self.placement.without_branch(found))
        self.placement.erase(found.sum)
        return proof

    def readers(self, node: Node, found: Pushed) -> Refusal | Certificate:
        """The weights that read what the norm gives take it, and what is added on the way is divided."""
        proof = folded_behind(self.rule, node, found, self.work)
        refusal = self._refuse_crossing(node, found)
        if refusal is not None:
            return refusal
        changed = [self.placement.behind(read) for read in found.reads]
        made = [made for one in changed for made in one.values()]
        made += [leaf for one in found.sums for leaf in self.placement.weights(one.plan, node)]
        refusal = self._refuse_made(node, made)
        if refusal is not None:
            return refusal
        self._rest_on_precision(node)
        for read, values in zip(found.reads, changed, strict=True):
            set_arguments(read.node, values)
            note_shift(read.node)
        for norm, _, maps in found.norms:
            take_maps(norm, maps, self.placement)
        for one in found.sums:
            self.work.written.pop(one.node, None)
        self.placement.substitute([(one.node, one.other, one.plan) for one in found.sums])
        source = region_of(node).operands(node).source
        self._replace(node, source, source)
        return proof

    def _shift(self, node: Node) -> tuple[bool, Premise | None]:
        """Whether the shift is large beside what it is added to; what that rests on."""
        region, program = region_of(node), self.work.program
        operands, eps = region.operands(node), region.spec.eps or 0.0
        return shift_is_large(node, operands, eps, program), small_shift(program, node, operands, eps)

    def _rest_on_precision(self, node: Node) -> None:
        region = region_of(node)
        rest_on_precision(self.work.program, node, region.operands(node), region.spec.eps or 0.0)

    def _forget_written(self, found: Beside) -> None:
        """What a changed reader hands on to the sum has another value from now on."""
        stack, seen = [found.rest], set[Node]()
        while stack:
            value = stack.pop()
            self.work.written.pop(value, None)
            seen.add(value)
            if value is not found.reader:
                stack.extend(n for n in value.all_input_nodes if n not in seen and n not in self.weights)

    def _refuse_crossing(self, node: Node, found: Pushed) -> Refusal | None:
        """Why what is added behind the norm, or the norms that read it, cannot take what it does, if so."""
        program = self.work.program
        for norm, _, _ in found.norms:
            refusal = self._refuse_taking(norm)
            if refusal is not None:
                return refusal
        crossed = [(one.node, one.axis, one.maps) for one in found.sums]
        for value, axis, maps in dict.fromkeys((*found.norms, *crossed)):
            refusal = refusal_of_division(node, maps, static_size(value, axis), self.placement, program)
            if refusal is not None:
                return refusal
        for one in found.sums:
            refusal = self._refuse_taps(node, leaves_of(one.plan))
            if refusal is not None:
                return refusal
        plans = (one.plan for one in found.sums)
        return refusal_of_parts(f"what is added behind {described(node)}", node, plans)

    def _refuse_taking(self, norm: Node) -> Refusal | None:
        """Why a norm cannot take maps of what it reads."""
        if norm not in self.work.sites or not self.work.may(norm, self.rule.name):
            message = f"{described(norm)} must stay as it is, and reads the values"
            return Refusal("raw_reader", message, norm.name)
        if region_of(norm).spec.eps is None:
            return Refusal("unusual_form", f"the eps of {described(norm)} is not a number", norm.name)
        return refuse_stored(norm, self.weights, self.work.program)

    def _refuse_taps(self, node: Node, leaves: Iterable[Leaf]) -> Refusal | None:
        return refusal_of_large_taps(node, leaves, self.placement, self.work.program)

    def _refuse_made(self, node: Node, made: Iterable[Node]) -> Refusal | None:
        return rest_on_range(self.work.program, node, list(made), self.placement)

    def _replace(self, node: Node, source: Node, made: Node) -> Node:
        with node.graph.inserting_before(node):
            if not (lies_alike(node, source) or keeps_its_order(node)):
                made = call(node.graph, aten.contiguous.default, made)
            if aliased_by(source) and is_returned(node):
                made = call(node.graph, aten.clone.default, made)
        node.replace_all_uses_with(made)
        self.placement.erase(node)
        refresh_readers(made)
        return made
