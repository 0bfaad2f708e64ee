"""A norm as one of normfuse's Triton kernels, together with the sum that it reads.

The kernels compute in float32 and round once, so they are at least as exact as what they replace.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, GraphModule, Node

from normfuse.ir.calls import aten, bind, is_call
from normfuse.ir.effects import Effects
from normfuse.ir.location import described
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import is_row_major, same_shape, static_size, tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.kernels.arguments import DTYPES, WIDEST
from normfuse.kernels.device import takes_kernel
from normfuse.kernels.reference import CRMS, LAYER, RMS

__all__ = ["NO_GPU", "obstacle", "write_kernel"]

NO_GPU = "is not on a GPU, where the kernels run"
_SMALLEST = torch.finfo(torch.float32).tiny


def obstacle(node: Node, region: NormRegion) -> str:
    """Why a norm has no kernel; empty where it has one."""
    spec, operands = region.spec, region.operands(node)
    source, result = tensor_of(operands.source), tensor_of(node)
    if source is None or result is None or not takes_kernel("a norm", source):
        return f"{described(node)} {NO_GPU}"
    if _kind(spec) is None or spec.statistics != "input" or spec.returns != "value" or spec.dims != (-1,):
        return f"no kernel computes a {spec.kind} of this form"
    if spec.eps is None or not spec.eps >= _SMALLEST or spec.eps_mode != "inside" or spec.divisor is not None:
        return f"no kernel takes the eps or the divisor of {described(node)}"
    if spec.post_factor != 1 or spec.affine_dims or not is_row_major(result):
        return f"no kernel gives the result of {described(node)} its factor, weight or order"
    return _obstacle_of_types(node, operands, source, result)


def _obstacle_of_types(node: Node, operands: Operands, source: torch.Tensor, result: torch.Tensor) -> str:
    width = static_size(operands.source, -1)
    if width is None or not 0 < width <= WIDEST:
        return f"the kernels take rows of a known width up to {WIDEST}"
    if source.dtype not in DTYPES or result.dtype != source.dtype:
        return f"no kernel takes {source.dtype} and gives {result.dtype}"
    for operand in (operands.scale, operands.shift):
        value = tensor_of(operand)
        fits = value is not None and tuple(value.shape) == (width,) and value.dtype in DTYPES
        if operand is not None and not fits:
            return f"no kernel takes the weight or bias of {described(node)}"
    return ""


def _kind(spec: NormSpec) -> int | None:
    if spec.kind == "crms_norm":
        return CRMS if spec.basis == "drop_last" else RMS
    return {"rms_norm": RMS, "layer_norm": LAYER}.get(spec.kind)


def write_kernel(gm: GraphModule, node: Node, region: NormRegion, effects: Effects) -> None:
    """Put the kernel in the place of a norm that has no obstacle, and of the sum that it reads."""
    from normfuse.kernels.operators import norm

    spec, operands = region.spec, region.operands(node)
    parts = _residual(operands, effects)
    x, residual = parts or (operands.source, None)
    target = norm._opoverload
    with gm.graph.inserting_before(_place(operands) if parts else node):
        given = (x, operands.scale, operands.shift, residual, None, _kind(spec), spec.eps, 0.0, spec.groups)
        made = gm.graph.call_function(target, (*given, False, True))
        made.meta["val"] = _results(node, operands.source, parts is not None, spec.groups)
        value, total = _part(gm.graph, made, 0), _part(gm.graph, made, 1)
    for new in (made, value, total):
        new.meta.update({k: v for k, v in node.meta.items() if k != "val"})
    node.replace_all_uses_with(value)
    gm.graph.erase_node(node)
    if parts:
        operands.source.replace_all_uses_with(total, delete_user_cb=lambda user: user is not made)
        gm.graph.erase_node(operands.source)
    else:
        gm.graph.erase_node(total)


def _results(node: Node, source: Node, adds: bool, groups: int) -> tuple[torch.Tensor, ...]:
    """Fake values of the four results; the last two have a number for each row and group."""
    value, whole = tensor_of(node), tensor_of(source)
    assert value is not None
    assert whole is not None
    rows = whole.numel() // whole.shape[-1]
    factors = whole.new_empty((rows, groups), dtype=torch.float32)
    return value, whole if adds else whole.new_empty(0), factors, factors


def _part(graph: Graph, made: Node, index: int) -> Node:
    part = graph.call_function(operator.getitem, (made, index))
    part.meta["val"] = made.meta["val"][index]
    return part


def _residual(operands: Operands, effects: Effects) -> tuple[Node, Node] | None:
    """The two values whose sum the norm reads, where the kernel can add them."""
    total = operands.source
    if not is_call(total, aten.add.Tensor) or bind(total)["alpha"] != 1:
        return None
    if not _is_the_same_there(total, operands, effects):
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


def _is_the_same_there(total: Node, operands: Operands, effects: Effects) -> bool:
    """Whether the kernel finds the sum, the weight and the bias where the sum stands as the norm does."""
    given = [n for n in (operands.scale, operands.shift) if n is not None]
    known = all(n.op in ("placeholder", "get_attr") or n < total for n in given)
    return known and not any(effects.is_written(n) for n in (total, *given))


def _place(operands: Operands) -> Node:
    """Before the first reader of the sum, which is behind the sum itself."""
    return operands.source.next
