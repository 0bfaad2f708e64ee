"""How much of a model's time is in which operators: a rough estimate, from the sizes in the graph alone.

    time = max(bytes read and written / bandwidth, floating-point operations / throughput)

Only the ratio of bandwidth and throughput matters, as operations per byte. Compilers fuse what is computed
element by element into what stands beside it, so of such operators only the result counts; views are free.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.fx import Node

from normfuse.ir.calls import aten, bind
from normfuse.ir.effects import aliased_by
from normfuse.ir.region import norm_of
from normfuse.ir.sizes import tensor_of, tensors_of
from normfuse.torch_compat import size_hint

__all__ = ["bytes_of", "count_of", "time_of"]

#: Operations that take as long as one byte of memory traffic: of a CPU core, and of an accelerator whose
#: matrix units work in 16 or in 32 bits (H100: 990 or 67 teraflops, 3.35 terabytes a second).
_CPU, _ACCELERATOR_16, _ACCELERATOR_32 = 8.0, 300.0, 20.0


def time_of(node: Node) -> float | None:
    """In bytes of memory traffic that would take as long; None for an operator of which nothing is known."""
    if node.op in ("placeholder", "get_attr", "output") or node.target is operator.getitem:
        return 0.0
    made = tensors_of(node)
    if not made:
        return 0.0
    if norm_of(node) is not None:
        return bytes_of(node) + bytes_of(node.all_input_nodes[0])
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return None
    count = _OPERATIONS.get(node.target)
    if count is None:
        return 0.0 if aliased_by(node) else bytes_of(node)
    traffic = bytes_of(node) + sum(bytes_of(n) for n in node.all_input_nodes)
    return max(traffic, count(node) / _operations_per_byte(made[0]))


def _operations_per_byte(value: torch.Tensor) -> float:
    if value.device.type == "cpu":
        return _CPU
    return _ACCELERATOR_16 if value.element_size() <= 2 else _ACCELERATOR_32


def bytes_of(node: Node) -> float:
    """Bytes of all tensors that a node gives."""
    return sum(count_of(t) * t.element_size() for t in tensors_of(node))


def count_of(value: torch.Tensor | None) -> float:
    """The number of entries, with a guess where a size is only known when the graph runs."""
    return 0.0 if value is None else math.prod(float(size_hint(size)) for size in value.shape)


def _size(node: object, axis: int) -> float:
    value = tensor_of(node) if isinstance(node, Node) else None
    return 0.0 if value is None or not value.dim() else float(size_hint(value.shape[axis]))


def _by_operand(name: str, axis: int) -> Callable[[Node], float]:
    """Every entry of the result is a sum along one axis of an operand."""
    return lambda node: 2 * count_of(tensor_of(node)) * _size(bind(node)[name], axis)


def _convolved(node: Node) -> float:
    """Every entry of the result, or of the input of a transposed one, meets a whole filter."""
    bound, name = bind(node), str(node.target)
    weight = tensor_of(bound["weight"])
    transposed = "transpose" in name or bool(bound.get("transposed", False))
    positions = tensor_of(bound["input"]) if transposed else tensor_of(node)
    return 2 * count_of(positions) * count_of(weight) / max(_size(bound["weight"], 0), 1.0)


def _attended(node: Node) -> float:
    """Scores, and values weighted by them."""
    bound = bind(node)
    return 4 * count_of(tensor_of(bound["query"])) * _size(bound["key"], -2)


def _contracted(node: Node) -> float:
    """Every combination of the letters of an einsum, of which each operand has some."""
    equation, operands = str(node.args[0]).replace(" ", "").split("->")[0], node.args[1]
    sizes: dict[str, float] = {}
    for letters, operand in zip(equation.split(","), operands, strict=False):  # type: ignore[arg-type]
        sizes |= {letter: _size(operand, i - len(letters)) for i, letter in enumerate(letters)}
    return 2 * math.prod(size for letter, size in sizes.items() if letter != ".")


_OPERATIONS: dict[object, Callable[[Node], float]] = {
    aten.linear.default: _by_operand("input", -1),
    aten.matmul.default: _by_operand("self", -1),
    aten.mm.default: _by_operand("self", -1),
    aten.bmm.default: _by_operand("self", -1),
    aten.addmm.default: _by_operand("mat1", -1),
    aten.baddbmm.default: _by_operand("batch1", -1),
    aten.scaled_dot_product_attention.default: _attended,
    aten.einsum.default: _contracted,
    **dict.fromkeys(
        (
            aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
            aten.conv2d.padding, aten.conv3d.padding, aten.conv_transpose1d.default,
            aten.conv_transpose2d.input, aten.conv_transpose3d.input, aten.convolution.default,
        ),
        _convolved,
    ),
}  # fmt: skip
