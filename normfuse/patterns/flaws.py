"""Norms by their shape that cannot be lifted, and why."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from normfuse.ir.sizes import same
from normfuse.report import Refusal

__all__ = ["OPEN_SIZE", "flaw_of", "refusal"]

#: Of norms over so many elements as nobody knows yet.
OPEN_SIZE = "symbolic_axis"

_SENTENCES = {
    "complex_input": ("the norm is over complex numbers", "normalize the real and imaginary parts"),
    "integer_input": ("the norm is over integers", "cast the input to a floating dtype first"),
    OPEN_SIZE: (
        "the size of a normalized dimension is only known when the graph runs",
        "mark this dimension as static, e.g. with torch._dynamo.mark_static",
    ),
    "empty_input": ("the norm is over a tensor without elements", "give an example input with elements"),
    "masked_statistics": (
        "a mask selects the elements that the statistics are computed from",
        "call the model without a mask if nothing is masked",
    ),
    "statistics_read": (
        "the statistics that the operator returns are also read",
        "use the operator that returns the result alone, e.g. torch.nn.functional.layer_norm",
    ),
    "broadcast_source": (
        "the statistics or weights of the norm are larger than its input, which is repeated to meet them",
        "expand the input to the shape of the result first",
    ),
    "updates_statistics": (
        "the norm updates its running statistics when it runs",
        "call .eval() on the norm",
    ),
}


def flaw_of(shape: tuple[Any, ...] | None, dims: tuple[int, ...], symbolic: bool = False) -> str:
    """What is wrong with a norm over these dimensions; empty for nothing.

    ``symbolic`` allows sizes that are only known at run time along normalized dimensions.
    """
    if shape is None:
        return ""
    if any(same(size, 0) for size in shape):
        return "empty_input"
    return "" if symbolic or all(isinstance(shape[d], int) for d in dims) else OPEN_SIZE


def refusal(code: str, node: Node) -> Refusal:
    """The reason with this code."""
    message, remedy = _SENTENCES[code]
    return Refusal(code, message, node.name, remedy)
