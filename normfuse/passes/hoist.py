"""Take the algebra on weights out of the graph: each folded weight becomes an input of its own.

    y = linear(x, W - mean(W, 0))   =>   y = linear(x, folded),   folded = W - mean(W, 0) computed once

What the folded weights are made of is returned as recipes, in the order of the new inputs. Where
gradients are recorded, only the algebra on weights that do not train is taken out. A folded weight lies in
memory as what it stands for: the layout of outputs depends on it. What is returned is a copy, since the
caller may write to it and a later fold writes to the folded weight.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.folding.recipe import FOLD, Folded
from normfuse.ir.calls import aten
from normfuse.ir.dead_code import drop_unused
from normfuse.ir.effects import aliased_by, is_effectful
from normfuse.ir.emit import call
from normfuse.ir.program import Program
from normfuse.ir.readers import ancestors
from normfuse.ir.sizes import repeats
from normfuse.passes.recipes import recipe_of

__all__ = ["hoist"]


def hoist(program: Program) -> list[Folded]:
    """Replace every marked weight expression by a placeholder behind the existing ones."""
    graph = program.gm.graph
    returned = _returned(graph)
    for node in reversed(graph.nodes):
        if FOLD in node.meta and _is_view_of_one(node, returned):
            del node.meta[FOLD]
    roots = sorted(_roots(program))
    recipes = [recipe_of(program, root) for root in roots]
    last = [n for n in graph.nodes if n.op == "placeholder"][-1:]
    folded: list[Folded] = []
    for root, (recipe, sources) in zip(roots, recipes, strict=True):
        last = [_placeholder(graph, root, last[0])]
        folded.append(Folded(last[0], recipe, sources))
    for root, one in zip(roots, folded, strict=True):
        if root in returned:
            _copy(graph, one.node)
    drop_unused(graph)
    return folded


def _roots(program: Program) -> set[Node]:
    """Where folded weights end: what is computed at every call reads them.

    What nobody reads any more, since a rule gave its reader another weight, is no reason to keep one.
    """
    found = set[Node]()
    stack = [node for node in program.gm.graph.nodes if is_effectful(node)]
    seen = set(stack)
    while stack:
        node = stack.pop()
        for operand in node.all_input_nodes:
            if FOLD in operand.meta and FOLD not in node.meta and _can_be_folded(program, operand):
                found.add(operand)
            elif operand not in seen:
                seen.add(operand)
                stack.append(operand)
    return found


def _can_be_folded(program: Program, node: Node) -> bool:
    """What is made of constants alone stays in the graph, and so does what gradients flow through."""
    sources = [n for n in ancestors(node) if n.op == "placeholder"]
    return bool(sources) and not (program.grad_enabled and any(program.weights[s].trains for s in sources))


def _returned(graph: Graph) -> set[Node]:
    """The values whose memory the graph may return."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            found.update(node.all_input_nodes)
        elif node in found:
            found.update(aliased_by(node))
    return found


def _is_view_of_one(node: Node, returned: set[Node]) -> bool:
    """Whether a value that is read elsewhere has to stay a view: nothing else lies as it does."""
    if all(FOLD in user.meta for user in node.users):
        return False
    return repeats(node) or (node in returned and bool(aliased_by(node)))


def _copy(graph: Graph, weight: Node) -> None:
    """Let all that reads a folded weight read a copy."""
    users = list(weight.users)
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        made = call(graph, aten.clone.default, weight)
    for user in users:
        user.replace_input_with(weight, made)


def _placeholder(graph: Graph, root: Node, last: Node) -> Node:
    """An input behind the last one, for all that reads a folded weight.

    The graph may hold folded weights of an earlier rewrite: a name that is taken gets a number, a target not.
    """
    with graph.inserting_after(last):
        node = graph.placeholder(f"folded_{root.name}")
    node.target = node.name
    node.meta = {"val": root.meta["val"]}
    for user in [u for u in root.users if FOLD not in u.meta]:
        user.replace_input_with(root, node)
    return node
