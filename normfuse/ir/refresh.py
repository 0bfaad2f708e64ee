"""What is recorded of the readers of a value that lies in memory otherwise than what they read before.

A view of a part lies with gaps, and what is computed from it without: a transposed view of the one has other
strides than of the other. An operator that computes gives a result that lies as before, so this ends soon.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from normfuse.ir.calls import mutates
from normfuse.ir.emit import fake_value
from normfuse.ir.region import NormRegion, norm_of
from normfuse.ir.sizes import same

__all__ = ["refresh", "refresh_readers"]


def refresh_readers(node: Node) -> None:
    """Record anew what those give that read a value, and those that read these."""
    for reader in list(node.users):
        if refresh(reader):
            refresh_readers(reader)


def refresh(node: Node) -> bool:
    """Record anew what a node gives; whether it lies in memory otherwise than what was recorded."""
    made = _made(node)
    is_new = made is not None and not _lies_as(made, node.meta.get("val"))
    if is_new:
        node.meta["val"] = made
    return is_new


def _made(reader: Node) -> Any:
    region = norm_of(reader)
    if region is None:
        return _of_call(reader)
    owner = reader.graph.owning_module
    assert owner is not None
    revalued = _revalued(region, reader)
    owner.add_submodule(str(reader.target), revalued)
    result = revalued.body.output_node().args[0]
    assert isinstance(result, Node)
    return result.meta["val"]


def _revalued(region: NormRegion, node: Node) -> NormRegion:
    """The same norm over these operands; others that are spelled alike share its body, and keep it."""
    body = Graph()
    body.output(body.graph_copy(region.body, {}))
    inputs = (inner for inner in body.nodes if inner.op == "placeholder")
    for inner, operand in zip(inputs, node.args, strict=True):
        assert isinstance(operand, Node)
        inner.meta["val"] = operand.meta["val"]
    for inner in body.nodes:
        made = _of_call(inner)
        if made is not None:
            inner.meta["val"] = made
    return NormRegion(region.spec, body, region.spelling, region.held)


def _of_call(node: Node) -> Any:
    """What a call gives; None for one that only a run may make."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return node.args[0].meta["val"][node.args[1]]
    if not isinstance(node.target, OpOverload) or mutates(node):
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return None
    with torch.no_grad():
        return fake_value(node.target, node.args, node.kwargs)


def _lies_as(made: Any, before: Any) -> bool:
    pairs = zip(tree_leaves(made), tree_leaves(before), strict=True)
    return all(all(map(same, a.stride(), b.stride())) for a, b in pairs if isinstance(a, torch.Tensor))
