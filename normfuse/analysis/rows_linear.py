"""Table rows of the operators that mix channels linearly: their weights absorb the map.

M (W x + b) = (M W) x + (M b), and a shift belongs to the bias; W (M x) = (W M) x.
"""

from __future__ import annotations

from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from torch.fx import Node

from normfuse.analysis.contraction import Contraction, Factor, contracts
from normfuse.analysis.flow import Carries, Flow, Shift
from normfuse.analysis.operator_table import block, row
from normfuse.ir.calls import aten
from normfuse.ir.einsum import subscripts
from normfuse.ir.location import described
from normfuse.ir.sizes import rank_of, shape_of
from normfuse.report import Refusal

__all__: list[str] = []


def _leading(count: int, of: int) -> str:
    """Letters for ``count`` leading axes that are broadcast to ``of``."""
    return ascii_uppercase[of - count : of]


def _addend(name: str, value: object, out: str) -> Factor | None:
    """What is added, broadcast from the right."""
    return Factor(name, value, out[len(out) - rank_of(value) :]) if isinstance(value, Node) else None


@contracts(aten.linear.default)
def _linear(node: Node, bound: dict[str, Any]) -> Contraction | None:
    x, weight = bound["input"], bound["weight"]
    batch, out = _leading(rank_of(x) - 1, rank_of(x) - 1), "o" * (rank_of(weight) - 1)
    factors = (Factor("input", x, f"{batch}i"), Factor("weight", weight, f"{out}i"))
    bias = _addend("bias", bound["bias"], batch + out)
    return Contraction(factors, batch + out, ("bias", "o"), bias)


@contracts(aten.mm.default, aten.matmul.default, aten.bmm.default, aten.mv.default)
def _matmul(node: Node, bound: dict[str, Any]) -> Contraction | None:
    return _product(bound, *bound)


@contracts(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def _addmm(node: Node, bound: dict[str, Any]) -> Contraction | None:
    added, left, right, *_ = bound
    found = _product(bound, left, right)
    return replace(
        found,
        bias=(added, found.out),
        addend=_addend(added, bound[added], found.out),
        adds=bound["beta"] == 1,
        multiplies=bound["alpha"] != 1,
    )


def _product(bound: dict[str, Any], left: str, right: str) -> Contraction:
    """Matrices that may have leading axes, or vectors; either operand may be the weight."""
    a, b = rank_of(bound[left]), rank_of(bound[right])
    leading = max(a, b, 2) - 2
    rows, columns = "n" * (a > 1), "o" * (b > 1)
    first = Factor(left, bound[left], _leading(max(a - 2, 0), leading) + rows + "i")
    second = Factor(right, bound[right], _leading(max(b - 2, 0), leading) + "i" + columns)
    return Contraction((first, second), _leading(leading, leading) + rows + columns)


@contracts(aten._grouped_mm.default)
def _grouped(node: Node, bound: dict[str, Any]) -> Contraction | None:
    """Rows of one expert after the other, each times that expert's matrix: all experts take the map."""
    rows, experts = bound["self"], bound["mat2"]
    if bound["bias"] is not None or rank_of(experts) != 3 or (rank_of(rows) == 3) != (bound["offs"] is None):
        return None
    data = "ni" if rank_of(rows) == 2 else "Eni"
    # Which matrix a row is multiplied by depends on the row: it is as if every row had its own.
    own = "nio" if rank_of(rows) == 2 else "Eio"
    out = "no" if rank_of(rows) == 2 else "Eno"
    return Contraction((Factor("self", rows, data), Factor("mat2", experts, own)), out)


@contracts("transformers::grouped_mm_fallback")
def _grouped_by_name(node: Node, bound: dict[str, Any]) -> Contraction | None:
    """The same by the operator of ``transformers`` for dtypes and devices without PyTorch's own."""
    return Contraction(
        (Factor("input", bound["input"], "ni"), Factor("weight", bound["weight"], "nio")), "no"
    )


@contracts(aten.einsum.default)
def _einsum(node: Node, bound: dict[str, Any]) -> Contraction | None:
    operands = list(bound["tensors"])
    inputs, output = subscripts(bound["equation"], [rank_of(o) for o in operands])
    pairs = enumerate(zip(operands, inputs, strict=True))
    return Contraction(tuple(Factor(f"tensors.{i}", o, letters) for i, (o, letters) in pairs), output)


@contracts(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
def _conv(node: Node, bound: dict[str, Any]) -> Contraction | None:
    """Output channel ``o`` of a grouped convolution sees only its group's inputs."""
    return _convolved(bound, "oi", _zero_padding(node) if _pads(bound) else None)


@contracts(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _conv_transpose(node: Node, bound: dict[str, Any]) -> Contraction | None:
    """Outputs differ in how many inputs they see, so a shift of the inputs is no bias."""
    return _convolved(bound, "io", _zero_padding(node))


@contracts(aten.convolution.default)
def _convolution(node: Node, bound: dict[str, Any]) -> Contraction | None:
    """What core ATen makes of both kinds."""
    if bound["transposed"]:
        return _convolved(bound, "io", _zero_padding(node))
    return _convolved(bound, "oi", _zero_padding(node) if _pads(bound) else None)


def _convolved(bound: dict[str, Any], weight: str, no_shift: Refusal | None) -> Contraction:
    """Positions of the kernel, of the data and of the result are axes of their own."""
    positions = rank_of(bound["weight"]) - 2
    batch = "N" * (rank_of(bound["input"]) - 1 - positions)
    windows = "xyz"[:positions]
    data = Factor("input", bound["input"], f"{batch}i{windows}")
    kernel = Factor("weight", bound["weight"], weight + "klm"[:positions])
    bias = Factor("bias", bound["bias"], "o") if isinstance(bound["bias"], Node) else None
    out = f"{batch}o{'uvw'[:positions]}"
    return Contraction(
        (data, kernel), out, ("bias", "o"), bias, windows=windows, groups=bound["groups"], no_shift=no_shift
    )


def _pads(bound: dict[str, Any]) -> bool:
    padding = bound["padding"]
    if isinstance(padding, str):
        kernel = (shape_of(bound["weight"]) or ())[2:]
        return padding != "valid" and any(size != 1 for size in kernel)
    return any(not isinstance(p, int) or p != 0 for p in padding)


def _zero_padding(node: Node) -> Refusal:
    return Refusal(
        "zero_padding",
        f"{described(node)} pads the normalized values with zeros, to which the shift would be added as well",
        node.name, "pad with padding_mode='reflect', 'replicate' or 'circular', or put the norm after it",
    )  # fmt: skip


@row(aten.embedding.default)
def _embedding(node: Node, bound: dict[str, Any], axis: int) -> Flow:
    if axis != len(shape_of(node) or ()) - 1:
        message = f"the channels of {described(node)} are not the columns of its table"
        return block(node, "channel_mix", message)
    return Carries(((bound["weight"], 1),), table=True, shift=Shift.EVERYWHERE)
