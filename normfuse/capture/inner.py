"""The graphs inside of a graph, as checkpointing and conditions have them: looked at, and not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from normfuse.errors import cause
from normfuse.ir.location import operator_name
from normfuse.ir.program import Inner, Input, Program, Role

__all__ = ["bodies", "inner_graphs"]

Translate = Callable[[GraphModule], GraphModule]


def inner_graphs(program: Program, translate: Translate) -> list[Inner]:
    """A copy of every graph that operators of ``program`` run, at any depth, as whole ATen operators.

    What cannot be translated is left out, with a note in the program.
    """
    found: list[Inner] = []
    for node in program.gm.graph.nodes:
        for body, operands in bodies(program.gm, node):
            try:
                inside = _program(translate(body), operands, program.weights)
                found += [Inner(operator_name(node), inside), *inner_graphs(inside, translate)]
            except Exception as error:
                program.notes.append(
                    f"the norms inside of {operator_name(node)} are not listed: {cause(error)}"
                )
    return found


def bodies(gm: GraphModule, node: Node) -> Iterator[tuple[GraphModule, list[Node]]]:
    """The graphs that a call runs, each with what it is called with."""
    if not isinstance(node.target, HigherOrderOperator):
        return
    leaves = [leaf for leaf in tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)]
    held = {leaf: getattr(gm, str(leaf.target), None) for leaf in leaves if leaf.op == "get_attr"}
    operands = [leaf for leaf in leaves if not isinstance(held.get(leaf), GraphModule)]
    for body in held.values():
        if isinstance(body, GraphModule):
            count = len(body.graph.find_nodes(op="placeholder"))
            yield body, operands[len(operands) - count :] if count <= len(operands) else []


def _program(body: GraphModule, operands: list[Node], weights: dict[Node, Input]) -> Program:
    placeholders = body.graph.find_nodes(op="placeholder")
    inputs = [Input(node, Role.USER, node.name) for node in placeholders]
    for index, (node, operand) in enumerate(zip(placeholders, operands, strict=False)):
        outer = weights.get(operand)
        if outer is not None:
            inputs[index] = Input(node, outer.role, outer.name, outer.value, outer.owner)
    return Program(body, inputs)
