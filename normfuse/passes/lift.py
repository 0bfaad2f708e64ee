"""Replace every recognised norm by one node that carries the operators it was spelled with.

The node runs exactly those operators, so lifting changes no bit; what changes is that later
passes see a norm.
"""

from __future__ import annotations

from dataclasses import fields, replace

from torch.fx import Graph, GraphModule, Node

from normfuse.analysis.weights import WeightValues
from normfuse.ir.effects import Effects
from normfuse.ir.location import module_path, source_line
from normfuse.ir.region import NormRegion, Operands
from normfuse.passes.work import Work
from normfuse.patterns import Candidate, absorb, find_facts, handwritten_norms, native_norms, stored_norms
from normfuse.report import Refusal, Site

__all__ = ["lift"]


def lift(work: Work) -> None:
    """Lift all norms of the program and record a site for each."""
    gm = work.program.gm
    effects = Effects(gm.graph)
    facts = find_facts(gm.graph)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    cores = [*native_norms(gm.graph, facts), *handwritten_norms(facts)]
    stored = stored_norms(gm.graph, WeightValues(work.program, effects))
    lifted: dict[Node, Node] = {}
    whole = {c.root for c in stored}
    for core in sorted([*cores, *stored], key=lambda c: order[c.root]):
        followed = _following(core, lifted)
        norm = followed if core.root in whole else absorb(followed)
        interior = sorted(_interior(norm), key=lambda n: order.get(n, -1))
        _lift_one(work, norm, interior, effects, lifted)


def _following(norm: Candidate, lifted: dict[Node, Node]) -> Candidate:
    """The candidate with operands that were lifted in the meantime replaced by their lifted nodes."""
    held = {f.name: getattr(norm.operands, f.name) for f in fields(norm.operands)}
    return replace(norm, operands=Operands(**{role: lifted.get(n, n) for role, n in held.items()}))


def _lift_one(
    work: Work, norm: Candidate, interior: list[Node], effects: Effects, lifted: dict[Node, Node]
) -> None:
    spelling = ", ".join(_operator(node) for node in interior)
    site = Site.of(norm.spec, module_path(norm.root), source_line(norm.root), spelling)
    if norm.refusal is not None:
        site.refuse(norm.refusal)
        work.report.sites.append(site)
        return
    if any(effects.is_written(n) for n in (*interior, *norm.operands.as_args())):
        site.refuse(_mutated(norm))
        work.report.sites.append(site)
        return
    lifted[norm.root] = _replace(work.program.gm, norm, interior, spelling)
    work.record(lifted[norm.root], site)


def _interior(norm: Candidate) -> set[Node]:
    """The nodes between the operands and the root."""
    stop, seen, stack = set(norm.operands.as_args()), {norm.root}, [norm.root]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in stop and node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _replace(gm: GraphModule, norm: Candidate, interior: list[Node], spelling: str) -> Node:
    region = NormRegion(norm.spec, _body(norm, interior), spelling)
    name = f"norm_{sum(1 for n in gm._modules if n.startswith('norm_'))}"
    gm.add_submodule(name, region)
    with gm.graph.inserting_after(norm.root):
        node = gm.graph.call_module(name, norm.operands.as_args())
    node.meta = dict(norm.root.meta)
    norm.root.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    for dead in reversed(interior):
        if not dead.users:
            gm.graph.erase_node(dead)
    return node


def _body(norm: Candidate, interior: list[Node]) -> Graph:
    graph = Graph()
    copies: dict[Node, Node] = {}
    for operand in norm.operands.as_args():
        if operand not in copies:
            copies[operand] = graph.placeholder(operand.name)
            copies[operand].meta = dict(operand.meta)
        else:
            graph.placeholder(f"{operand.name}_again")
    for node in interior:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[norm.root])
    return graph


def _mutated(norm: Candidate) -> Refusal:
    return Refusal(
        code="mutated",
        message="the graph writes in place to memory that this norm reads",
        node=norm.root.name,
        remedy="write the update out of place, e.g. `x = x + y` for `x += y`",
    )
