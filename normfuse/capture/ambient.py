"""Programs that were exported under an autocast around the call, which ``torch.export`` leaves out of them.

What is recorded of their values then has the dtypes of a call under autocast, and what runs has none of its
casts. An autocast inside of the model is an operator with a graph of its own.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.errors import InputError
from normfuse.ir.calls import aten, is_call
from normfuse.ir.location import described
from normfuse.ir.sizes import tensor_of

__all__ = ["refuse_ambient_autocast"]

#: Operators that autocast runs in another dtype, and that give that of an operand without it.
_KEEP_DTYPE = (
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default,
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.layer_norm.default,
)  # fmt: skip


def refuse_ambient_autocast(graph: Graph) -> None:
    """Refuse a program with a product that is recorded in a dtype which none of its operands has.

    Raises:
        InputError: naming the product, and what to do.
    """
    for node in graph.nodes:
        if is_call(node, *_KEEP_DTYPE) and not _keeps_dtype(node):
            raise InputError(
                "the program was exported under torch.autocast, whose casts it does not hold: the dtype "
                f"recorded of {described(node)} is not the one it gives; export or rewrite the model outside "
                "of autocast, which may stand in its forward"
            )


def _keeps_dtype(node: Node) -> bool:
    made = tensor_of(node)
    read = [value.dtype for operand in node.all_input_nodes if (value := tensor_of(operand)) is not None]
    return made is None or made.dtype in read
