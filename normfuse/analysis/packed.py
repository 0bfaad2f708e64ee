"""Operators that look inside of a tensor that is not a plain one, such as a quantized weight."""

from __future__ import annotations

from torch.fx import Node

from normfuse.ir.location import described
from normfuse.report import Refusal
from normfuse.torch_compat import is_traceable_wrapper_subclass

__all__ = ["refusal_of_packed"]


def refusal_of_packed(node: Node) -> Refusal | None:
    """Why no map can go into what an operator reads, where one of its operands holds other tensors."""
    for operand in node.all_input_nodes:
        value = operand.meta.get("val")
        if is_traceable_wrapper_subclass(value):
            return Refusal(
                "weight_subclass",
                f"{described(node)} reads {described(operand)}, a {type(value).__name__} and no plain tensor",
                node.name, "convert the model before it is quantized or distributed",
            )  # fmt: skip
    return None
