"""Take every norm out of a graph, which changes the function: for measuring what the norms cost.

    y = norm(x)   =>   y = x

No rewrite can be faster than this one, so the difference is the most that there is to gain.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from normfuse.ir.calls import aten, is_call
from normfuse.ir.dead_code import drop_unused
from normfuse.ir.emit import call, cast
from normfuse.ir.program import Program
from normfuse.ir.region import norms_in
from normfuse.ir.sizes import is_row_major, tensor_of
from normfuse.lowering.inline import inline_all
from normfuse.options import Options
from normfuse.passes.canonicalize import canonicalize
from normfuse.passes.functionalize import functionalize
from normfuse.passes.lift import lift
from normfuse.passes.work import Work

__all__ = ["delete_norms"]

#: Norms of one operator, whether or not a pattern describes them.
_NATIVE = (
    aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default, aten.batch_norm.default,
    aten.instance_norm.default,
)  # fmt: skip


def delete_norms(program: Program) -> int:
    """Remove native and hand-written norms, with their weights and biases; returns how many there were."""
    gm = program.gm
    functionalize(gm)
    canonicalize(gm)
    lift(Work(program, Options()))
    found = [node for node, _ in norms_in(gm)] + [n for n in gm.graph.nodes if is_call(n, *_NATIVE)]
    for node in found:
        _bypass(gm, node)
    drop_unused(gm.graph)
    inline_all(gm)
    return len(found)


def _bypass(gm: GraphModule, node: Node) -> None:
    """Let the readers of a norm read what it normalizes, in the type and layout of its result."""
    source, result = node.args[0], tensor_of(node)
    assert isinstance(source, Node)
    assert result is not None
    with gm.graph.inserting_before(node):
        value = cast(gm.graph, source, result.dtype)
        fake = tensor_of(value)
        if fake is not None and is_row_major(result) and not is_row_major(fake):
            value = call(gm.graph, aten.contiguous.default, value)
    node.replace_all_uses_with(value)
    gm.graph.erase_node(node)
