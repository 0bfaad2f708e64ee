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
from normfuse.lowering.readers import Product, products_behind

__all__ = ["SMALLEST", "Tensors", "addends", "without_kernels"]

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
        adds_in_product: whether the first of the products can stand where the addends are known.
    """

    name: str
    source: torch.Tensor | None
    result: torch.Tensor | None
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    addends: tuple[torch.Tensor, torch.Tensor] | None = None
    matrices: tuple[tuple[torch.Tensor, bool, torch.Tensor | None], ...] = ()
    other_reader: str = ""
    adds_in_product: bool = False

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
            pair is not None and bool(products) and _can_move(min(products), operands.source),
        )


def without_kernels(device: torch.device) -> str:
    """What there is to say of a norm on a device that has no kernels."""
    if device.type == "cuda":
        return "has no kernel without the package triton; pip install 'normfuse[triton]'"
    return "is not on a GPU, where the kernels run"


def addends(operands: Operands) -> tuple[Node, Node] | None:
    """The two values whose sum the norm reads, where a kernel can add them."""
    total = operands.source
    is_sum = is_call(total, aten.add.Tensor) and bind(total)["alpha"] == 1
    if not is_sum or not _is_found(total, operands.scale, operands.shift):
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


def _can_move(first: Product, total: Node) -> bool:
    """Whether a product of the norm itself gives the same where the sum stands."""
    return not first.path and _is_found(total, first.weight, first.bias)


def _is_found(total: Node, *given: Node | None) -> bool:
    """Whether a kernel finds the sum, and what else it is given, where the sum stands as it does later."""
    others, effects = [node for node in given if node is not None], Effects(total.graph)
    known = all(n.op in ("placeholder", "get_attr") or n < total for n in others)
    return known and not any(effects.is_written(n) for n in (total, *others))
