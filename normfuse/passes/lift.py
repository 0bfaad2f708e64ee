"""Replace every recognised norm by one node that carries the operators it was spelled with.

The node runs exactly those operators, so lifting changes no bit; what changes is that later
passes see a norm.
"""

from __future__ import annotations

from dataclasses import fields, replace

from torch.fx import Graph, GraphModule, Node

from normfuse.ir.effects import Effects
from normfuse.ir.grad_mode import gradient_regions
from normfuse.ir.location import module_path, source_line
from normfuse.ir.region import NormRegion, Operands
from normfuse.passes.work import Work
from normfuse.patterns import Candidate, absorb, find_facts, handwritten_norms, native_norms
from normfuse.report import Refusal, Site

__all__ = ["lift"]


def lift(work: Work) -> None:
    """Lift all norms of the program and record a site for each."""
    gm = work.program.gm
    effects = Effects(gm.graph)
    facts = find_facts(gm.graph)
    regions = gradient_regions(gm.graph) if work.program.grad_enabled else {}
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    cores = [*native_norms(gm.graph, facts), *handwritten_norms(facts)]
    lifted: dict[Node, Node] = {}
    for core in sorted(cores, key=lambda c: order[c.root]):
        norm = absorb(_following(core, lifted))
        interior = sorted(_interior(norm), key=lambda n: order.get(n, -1))
        refusal = _refusal(norm, interior, effects, regions)
        _lift_one(work, norm, interior, refusal, lifted)


def _following(norm: Candidate, lifted: dict[Node, Node]) -> Candidate:
    """The candidate with operands that were lifted in the meantime replaced by their lifted nodes."""
    held = {f.name: getattr(norm.operands, f.name) for f in fields(norm.operands)}
    return replace(norm, operands=Operands(**{role: lifted.get(n, n) for role, n in held.items()}))


def _lift_one(
    work: Work, norm: Candidate, interior: list[Node], refusal: Refusal | None, lifted: dict[Node, Node]
) -> None:
    spelling = ", ".join(_operator(node) for node in interior)
    site = Site.of(norm.spec, module_path(norm.root), source_line(norm.root), spelling)
    if refusal is not None:
        site.refuse(refusal)
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


def _refusal(
    norm: Candidate, interior: list[Node], effects: Effects, regions: dict[Node, int]
) -> Refusal | None:
    """Why the operators of a norm must stay where they are, if so."""
    if any(effects.is_written(n) for n in (*interior, *norm.operands.as_args())):
        return Refusal(
            code="mutated",
            message="the graph writes in place to memory that this norm reads",
            node=norm.root.name,
            remedy="write the update out of place, e.g. `x = x + y` for `x += y`",
        )
    if len({regions.get(n) for n in interior}) > 1:
        return Refusal(
            code="grad_mode",
            message="a part of this norm is computed under another gradient mode than the rest",
            node=norm.root.name,
            remedy="compute the whole norm inside or outside of torch.no_grad()",
        )
    return None
