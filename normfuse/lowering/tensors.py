"""A norm as a provider sees it: its tensors, and those of the operators that it would take along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.effects import Effects
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import is_row_major, same_shape, tensor_of
from normfuse.lowering.readers import products_behind

__all__ = ["NO_GPU", "SMALLEST", "Tensors", "addends"]

NO_GPU = "is not on a GPU, where the kernels run"
#: An eps that float32 can hold keeps the factor of a row of zeros finite.
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Tensors:
    """Fake values around one norm.

    Attributes:
        name: what to call the norm.
        source, result: what it reads and gives; None where that is not one tensor.
        scale, shift: its weight and bias, or None.
        addends: what the source is the sum of, where nothing keeps a norm from adding it.
        matrices: of the products that read the norm, each with whether it is stored output by output, and
            what is added to the product.
        other_reader: what reads the norm and is no product, or nothing.
    """

    name: str
    source: torch.Tensor | None
    result: torch.Tensor | None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    addends: tuple[torch.Tensor, torch.Tensor] | None = None
    matrices: tuple[tuple[torch.Tensor, bool, torch.Tensor | None], ...] = ()
    other_reader: str = ""

    @classmethod
    def of(cls, node: Node, region: NormRegion) -> Tensors:
        operands = region.operands(node)
        products, other = products_behind(node)
        pair = addends(operands)
        return cls(
            described(node),
            tensor_of(operands.source),
            tensor_of(node),
            tensor_of(operands.scale),
            tensor_of(operands.shift),
            None if pair is None else (pair[0].meta["val"], pair[1].meta["val"]),
            tuple((p.weight.meta["val"], p.is_linear, tensor_of(p.bias)) for p in products),
            "" if other is None else described(other),
        )


def addends(operands: Operands) -> tuple[Node, Node] | None:
    """The two values whose sum the norm reads, where a kernel can add them."""
    total = operands.source
    if not is_call(total, aten.add.Tensor) or bind(total)["alpha"] != 1 or not _follow(total, operands):
        return None
    left, right = total.args[:2]
    if not (isinstance(left, Node) and isinstance(right, Node)) or left is right:
        return None
    fits = all(same_shape(n, total) and _is_plain(n, total) for n in (left, right, total))
    return (left, right) if fits else None


def _is_plain(value: Node, total: Node) -> bool:
    """Whether a value lies row after row, in the dtype of the sum."""
    one, other = tensor_of(value), tensor_of(total)
    return one is not None and other is not None and one.dtype == other.dtype and is_row_major(one)


def _follow(total: Node, operands: Operands) -> bool:
    """Whether the kernel finds the sum, the weight and the bias where the sum stands as the norm does."""
    given, effects = [n for n in (operands.scale, operands.shift) if n is not None], Effects(total.graph)
    known = all(n.op in ("placeholder", "get_attr") or n < total for n in given)
    return known and not any(effects.is_written(n) for n in (total, *given))
