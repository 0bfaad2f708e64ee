"""Write every lifted norm out as operators again, so that nothing but ATen leaves the pipeline."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from normfuse.ir.region import NormRegion, norms_in

__all__ = ["inline", "inline_all"]


def inline_all(gm: GraphModule) -> dict[Node, Node]:
    """Inline the bodies of all norms and drop their modules; returns what has the values of the norms."""
    replaced = dict[Node, Node]()
    for node, region in norms_in(gm):
        values = _inlined(gm, node, region)
        replaced[node] = values[_result(region)]
    for name in [n for n, m in gm.named_children() if isinstance(m, NormRegion)]:
        delattr(gm, name)
    gm.graph.lint()
    gm.recompile()
    return replaced


def inline(gm: GraphModule, node: Node, region: NormRegion) -> list[Node]:
    """Write one norm out; returns the operators that it consists of."""
    values = _inlined(gm, node, region)
    return [values[n] for n in region.body.nodes if n.op == "call_function"]


def _result(region: NormRegion) -> Node:
    result = region.body.output_node().args[0]
    assert isinstance(result, Node)
    return result


def _inlined(gm: GraphModule, node: Node, region: NormRegion) -> dict[Node, Node]:
    placeholders = [n for n in region.body.nodes if n.op == "placeholder"]
    values = {p: a for p, a in zip(placeholders, node.args, strict=True) if isinstance(a, Node)}
    with gm.graph.inserting_before(node):
        for inner in region.body.nodes:
            if inner.op == "call_function":
                values[inner] = _copy(gm, inner, values, node)
    made = values[_result(region)]
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return values


def _copy(gm: GraphModule, inner: Node, values: dict[Node, Node], outer: Node) -> Node:
    made = gm.graph.node_copy(inner, values.__getitem__)
    made.meta = {k: v for k, v in outer.meta.items() if k in ("nn_module_stack", "stack_trace")}
    made.meta["val"] = inner.meta["val"]
    return made
