"""Operators get their arguments by position, however the program passes them.

    add(self=x, other=y)  ->  add(x, y)

Bitwise neutral. Capture writes calls so; a program that was edited by hand need not.
"""

from __future__ import annotations

from torch.fx import GraphModule

from normfuse.ir.calls import bind, is_call, set_arguments

__all__ = ["positional"]


def positional(gm: GraphModule) -> None:
    """Move every argument that has a position there."""
    for node in gm.graph.nodes:
        if node.kwargs and is_call(node):
            keyword_only = {a.name for a in node.target._schema.arguments if a.kwarg_only}
            named = set(node.kwargs) - keyword_only
            if named:
                set_arguments(node, {k: v for k, v in bind(node).items() if k in named})
