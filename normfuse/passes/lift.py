"""Replace every recognised norm by one node that carries the operators it was spelled with.

The node runs exactly those operators, so lifting changes no bit; what changes is that later
passes see a norm.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, fields
from typing import Any

from torch.fx import GraphModule, Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir.calls import readers
from normfuse.ir.changed import changed
from normfuse.ir.effects import Effects
from normfuse.ir.grad_mode import gradient_regions
from normfuse.ir.kinds import teach
from normfuse.ir.location import described, module_path, source_line
from normfuse.ir.region import UNLIFTED, NormRegion
from normfuse.ir.sizes import same_shape
from normfuse.passes.bodies import Bodies
from normfuse.passes.inside import sites_inside
from normfuse.passes.work import Work
from normfuse.patterns import (
    Candidate,
    absorb,
    find_facts,
    handwritten_norms,
    modulation,
    native_norms,
    of_weight,
    stored_norms,
    unseen_norms,
)
from normfuse.patterns.candidate import is_tensor
from normfuse.patterns.flaws import refusal as refusal_for
from normfuse.report import Refusal, Site

__all__ = ["lift"]


def lift(work: Work) -> None:
    """Lift all norms of the program and record a site for each."""
    gm = work.program.gm
    facts = find_facts(gm.graph)
    regions = gradient_regions(gm.graph) if work.program.grad_enabled else {}
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    cores = [*native_norms(gm.graph, facts), *handwritten_norms(facts)]
    effects = Effects(gm.graph)
    weights = WeightValues(work.program, effects)
    stored = stored_norms(gm.graph, weights)
    whole = {c.root for c in stored}
    lifting = _Lifting(work, effects, order, regions)
    known = set().union(*(core.interior() for core in (*cores, *stored)))
    unseen = unseen_norms(facts, known, weights)
    for core in sorted([*cores, *stored, *unseen], key=lambda c: order[c.root]):
        norm = lifting.followed(core)
        if core.root in whole and lifting.has_taken(norm):
            continue  # a norm ahead of it has taken the scale and the shift that it consists of
        if core.root not in whole:
            norm = of_weight(absorb(norm), work.program.weights)
        lifting.lift(norm, module_path(core.root), source_line(core.root))
    for inner in work.program.inner:
        work.report.sites += sites_inside(inner)


@dataclass
class _Lifting:
    """The graph as it is being lifted; ``lifted`` maps the ends of norms to the nodes that replaced them."""

    work: Work
    effects: Effects
    order: dict[Node, int]
    regions: dict[Node, int]
    lifted: dict[Node, Node] = field(default_factory=dict)
    consumed: set[Node] = field(default_factory=set)
    bodies: Bodies = field(default_factory=Bodies)

    def followed(self, norm: Candidate) -> Candidate:
        """The candidate with operands that were lifted in the meantime replaced by their lifted nodes."""
        roles = {f.name: getattr(norm.operands, f.name) for f in fields(norm.operands)}
        moved: dict[str, Any] = {
            role: self.lifted[n] for role, n in roles.items() if isinstance(n, Node) and n in self.lifted
        }
        held = tuple(self.lifted.get(n, n) for n in norm.operands.held)
        if held != norm.operands.held:
            moved["held"] = held
        return changed(norm, operands=changed(norm.operands, **moved)) if moved else norm

    def has_taken(self, norm: Candidate) -> bool:
        """Whether operators of the candidate belong to a norm already."""
        return norm.root in self.consumed or not norm.interior().isdisjoint(self.lifted.values())

    def lift(self, norm: Candidate, module: str, source: str) -> None:
        nodes = norm.interior() if norm.refusal is None else self._leading(norm)
        sizes = tuple(sorted((n for n in nodes if not is_tensor(n)), key=self._place))
        if sizes:
            norm = changed(norm, operands=changed(norm.operands, sizes=sizes))
            nodes = nodes - set(sizes)
        interior = sorted(nodes, key=self._place)
        spelling = ", ".join(_operator(node) for node in interior)
        site = Site.of(norm.spec, module, source, spelling)
        teach(norm.spec.kind)
        site.modulation = modulation(norm.root)
        refusal = norm.refusal or self._obstacle(norm, interior)
        if refusal is not None:
            site.refuse(refusal)
            self.work.report.sites.append(site)
            for node in interior:
                node.meta[UNLIFTED] = module or norm.root.name
            return
        body = self.bodies.of(norm.operands.as_args(), interior, norm.root)
        region = NormRegion(norm.spec, body, spelling, len(norm.operands.held))
        made = _replace(self.work.program.gm, norm, interior, region, len(self.lifted))
        self.lifted[norm.root] = made
        self.consumed.update(interior)
        self.order[made] = self._place(norm.root)
        self.work.record(made, site)

    def _leading(self, norm: Candidate) -> set[Node]:
        """The nodes that lead from what a norm normalizes to its result."""
        begin, kept = norm.operands.source, {norm.operands.source}
        behind, stack = {norm.root}, [norm.root]
        while stack:
            fresh = {n for n in stack.pop().all_input_nodes if self._place(n) > self._place(begin)} - behind
            behind |= fresh
            stack.extend(fresh)
        for node in sorted(behind, key=self._place):
            if node is norm.root or kept.intersection(node.all_input_nodes):
                kept.add(node)
        return kept - {begin}

    def _place(self, node: Node) -> int:
        return self.order.get(node, -1)

    def _obstacle(self, norm: Candidate, interior: list[Node]) -> Refusal | None:
        if norm.spec.returns == "value" and not same_shape(norm.operands.source, norm.root):
            return refusal_for("broadcast_source", norm.root)
        touched = [n for n in (*interior, *norm.operands.as_args()) if self.effects.is_written(n)]
        begins = min((self.order[n] for n in interior if n in self.order), default=-1)
        if any(self.order[w] >= begins for n in touched for w in self.effects.writers(n)):
            return _mutated(norm)
        inner = next((n for n in interior if n.op != "call_function"), None)
        if inner is not None:
            message = f"{described(inner)} belongs to this norm and to another one"
            return Refusal("overlap", message, inner.name)
        if len({self.regions.get(n) for n in interior}) > 1:
            return _divided(norm)
        return None


def _operator(node: Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.").split(".")[0]


def _replace(gm: GraphModule, norm: Candidate, interior: list[Node], region: NormRegion, number: int) -> Node:
    name = f"norm_{number}"
    gm.add_submodule(name, region)
    with gm.graph.inserting_after(norm.root):
        node = gm.graph.call_module(name, norm.operands.as_args())
    node.meta = dict(norm.root.meta)
    norm.root.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    for dead in reversed(interior):
        if not readers(dead):
            for assertion in list(dead.users):
                gm.graph.erase_node(assertion)
            gm.graph.erase_node(dead)
    return node


def _mutated(norm: Candidate) -> Refusal:
    return Refusal(
        code="mutated",
        message="the graph writes in place to memory that this norm reads, while or after it does",
        node=norm.root.name,
        remedy="write the update out of place, e.g. `x = x + y` for `x += y`",
    )


def _divided(norm: Candidate) -> Refusal:
    return Refusal(
        code="grad_mode",
        message="a part of this norm is computed under a different gradient mode from the rest",
        node=norm.root.name,
        remedy="compute the whole norm either inside or outside of torch.no_grad()",
    )
