"""Replace every recognised norm by one node that carries the operators it was spelled with.

The node runs exactly those operators, so lifting changes no bit; what changes is that later
passes see a norm.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.calls import readers
from normfuse.ir.effects import Effects
from normfuse.ir.location import module_path, source_line
from normfuse.ir.region import NormRegion
from normfuse.passes.work import Work
from normfuse.patterns import (
    Candidate,
    absorb,
    find_facts,
    handwritten_norms,
    modulation,
    native_norms,
    of_weight,
)
from normfuse.report import Refusal, Site

__all__ = ["lift"]


def lift(work: Work) -> None:
    """Lift all norms of the program and record a site for each."""
    gm = work.program.gm
    effects = Effects(gm.graph)
    facts = find_facts(gm.graph)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    weights = work.program.weights
    cores = [*native_norms(gm.graph, facts), *handwritten_norms(facts)]
    lifted: dict[Node, Node] = {}
    for core in sorted(cores, key=lambda c: order[c.root]):
        norm = of_weight(absorb(_following(core, lifted)), weights)
        nodes = _between(norm)
        sizes = sorted((n for n in nodes if not _is_tensor(n)), key=lambda n: order.get(n, -1))
        norm = replace(norm, operands=replace(norm.operands, sizes=tuple(sizes)))
        interior = sorted(_between(norm), key=lambda n: order.get(n, -1))
        _lift_one(work, norm, core.root, interior, effects, lifted, order)


def _following(norm: Candidate, lifted: dict[Node, Node]) -> Candidate:
    """The candidate with operands that were lifted in the meantime replaced by their lifted nodes."""
    held = {f.name: getattr(norm.operands, f.name) for f in fields(norm.operands)}
    moved: dict[str, Any] = {role: lifted.get(n, n) for role, n in held.items() if isinstance(n, Node)}
    return replace(norm, operands=replace(norm.operands, **moved))


def _lift_one(
    work: Work,
    norm: Candidate,
    core: Node,
    interior: list[Node],
    effects: Effects,
    lifted: dict[Node, Node],
    order: dict[Node, int],
) -> None:
    spelling = ", ".join(_operator(node) for node in interior)
    site = Site.of(norm.spec, module_path(core), source_line(core), spelling)
    site.modulation = modulation(norm.root)
    refusal = norm.refusal or _obstacle(norm, interior, effects, order)
    if refusal is not None:
        site.refuse(refusal)
        work.report.sites.append(site)
        return
    lifted[norm.root] = _replace(work.program.gm, norm, interior, spelling, len(lifted))
    work.record(lifted[norm.root], site)


def _obstacle(
    norm: Candidate, interior: list[Node], effects: Effects, order: dict[Node, int]
) -> Refusal | None:
    touched = [n for n in (*interior, *norm.operands.as_args()) if effects.is_written(n)]
    begins = min((order[n] for n in interior if n in order), default=-1)
    if any(order[writer] >= begins for n in touched for writer in effects.writers(n)):
        return _mutated(norm)
    inner = next((n for n in interior if n.op != "call_function"), None)
    if inner is not None:
        return Refusal("overlap", f"{inner.name} belongs to this norm and to another one", inner.name)
    return None


def _is_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, (torch.Tensor, tuple, list))


def _between(norm: Candidate) -> set[Node]:
    """The nodes between the operands and the root; a number is not looked into."""
    stop, seen, stack = set(norm.operands.as_args()), {norm.root}, [norm.root]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in stop and node not in seen:
                seen.add(node)
                if _is_tensor(node):
                    stack.append(node)
    return seen


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]


def _replace(gm: GraphModule, norm: Candidate, interior: list[Node], spelling: str, number: int) -> Node:
    region = NormRegion(norm.spec, _body(norm, interior), spelling)
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
        message="the graph writes in place to memory that this norm reads, while or after it does",
        node=norm.root.name,
        remedy="write the update out of place, e.g. `x = x + y` for `x += y`",
    )
