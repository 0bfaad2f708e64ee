"""How values of weights are computed, as programs of their own, and what they hold now."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from normfuse.folding.recipe import Recipe
from normfuse.ir.program import Program
from normfuse.ir.readers import ancestors
from normfuse.ir.sizes import tensor_of
from normfuse.torch_compat import outside_tracing

__all__ = ["recipe_of", "value_of"]


def recipe_of(program: Program, node: Node) -> tuple[Recipe, tuple[Node, ...]]:
    """How a value of weights is computed, as the folded weight that ends there would be, and of what."""
    return _recipe(program, node, sorted(ancestors(node)))


def value_of(program: Program, node: Node) -> torch.Tensor:
    """What a value of weights holds now, to be read alone."""
    weights = program.weights
    if node in weights:
        with outside_tracing():
            held: torch.Tensor = weights[node].value.detach()
            return held
    recipe, sources = recipe_of(program, node)
    return recipe.value([weights[source].value for source in sources])


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
