"""Take the algebra on weights out of the graph: each folded weight becomes an input of its own.

    y = linear(x, W - mean(W, 0))   =>   y = linear(x, folded),   folded = W - mean(W, 0) computed once

What the folded weights are made of is returned as recipes, in the order of the new inputs. Where
gradients are recorded, only the algebra on weights that do not train is taken out. A folded weight lies in
memory as what it stands for: the layout of outputs depends on it. What is returned is a copy, since the
caller may write to it and a later fold writes to the folded weight.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from normfuse.folding.recipe import FOLD, Folded, Recipe
from normfuse.ir.calls import aten
from normfuse.ir.dead_code import drop_unused
from normfuse.ir.effects import aliased_by, is_effectful
from normfuse.ir.emit import call
from normfuse.ir.program import Program
from normfuse.ir.sizes import repeats, tensor_of
from normfuse.torch_compat import outside_tracing

__all__ = ["hoist", "recipe_of", "value_of"]


def recipe_of(program: Program, node: Node) -> tuple[Recipe, tuple[Node, ...]]:
    """How a value of weights is computed, as the folded weight that ends there would be, and of what."""
    return _recipe(program, node, sorted(_ancestors(node)))


def value_of(program: Program, node: Node) -> torch.Tensor:
    """What a value of weights holds now, to be read alone."""
    weights = program.weights
    if node in weights:
        with outside_tracing():
            held: torch.Tensor = weights[node].value.detach()
            return held
    recipe, sources = recipe_of(program, node)
    return recipe.value([weights[source].value for source in sources])


def hoist(program: Program) -> list[Folded]:
    """Replace every marked weight expression by a placeholder behind the existing ones."""
    graph = program.gm.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    returned = _returned(graph)
    for node in reversed(order):
        if FOLD in node.meta and _is_view_of_one(node, returned):
            del node.meta[FOLD]
    roots = sorted(_roots(program), key=order.__getitem__)
    recipes = [_recipe(program, root, sorted(_ancestors(root), key=order.__getitem__)) for root in roots]
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
    sources = [n for n in _ancestors(node) if n.op == "placeholder"]
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


def _recipe(program: Program, root: Node, needed: list[Node]) -> tuple[Recipe, tuple[Node, ...]]:
    """The program that computes ``root``; names go by position, so equal programs have equal keys."""
    body = Graph()
    copies: dict[Node, Node] = {}
    sources: list[Node] = []
    for node in needed:
        if node.op == "placeholder":
            copies[node] = body.placeholder(f"source_{len(sources)}")
            copies[node].meta = {"val": node.meta["val"]}
            sources.append(node)
        else:
            copies[node] = body.node_copy(node, copies.__getitem__)
            copies[node].name = f"step_{len(copies)}"
    body.output(copies[root])
    value = tensor_of(root)
    assert value is not None
    stride = _stride(value)
    key = "\n".join(f"{n.op} {n.target} {n.args} {n.kwargs}" for n in body.nodes)
    key += f"\n{value.dtype} {stride}"
    if any(n.op == "get_attr" for n in body.nodes):
        key += f"\n{id(program.gm)}"
    named = ", ".join(program.weights[s].name for s in sources)
    return Recipe(body, program.gm, value.dtype, key, named, stride), tuple(sources)


def _stride(value: torch.Tensor) -> tuple[int, ...] | None:
    """None where it is a symbol, as that of a weight under ``make_fx`` may be."""
    stride = tuple(value.stride())
    return stride if all(isinstance(s, int) for s in stride) else None


def _ancestors(root: Node) -> set[Node]:
    seen, stack = {root}, [root]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return seen
