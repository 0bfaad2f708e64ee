"""A norm as one of normfuse's Triton kernels, by itself or together with the sum that it reads.

The kernels compute in float32 and round once, so they are at least as exact as what they replace.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import is_row_major
from normfuse.ir.spec import NormSpec
from normfuse.kernels.arguments import DTYPES, WIDEST
from normfuse.kernels.device import runs_kernels
from normfuse.kernels.reference import CRMS, LAYER, RMS
from normfuse.lowering.provider import Provider, Replaced, alike, part
from normfuse.lowering.tensors import SMALLEST, Tensors, addends, without_kernels
from normfuse.torch_compat import plain_size

__all__ = ["ADD_NORM", "KERNEL"]


def _refusal(spec: NormSpec, tensors: Tensors, device: torch.device) -> str:
    """Why a norm has no kernel; empty where it has one."""
    source, result = tensors.source, tensors.result
    if source is None or result is None or not runs_kernels(device):
        return f"{tensors.name} {without_kernels(device)}"
    if _kind(spec) is None or spec.statistics != "input" or spec.returns != "value" or spec.dims != (-1,):
        return f"no kernel computes a {spec.kind} of this form"
    if spec.eps is None or not spec.eps >= SMALLEST or spec.eps_mode != "inside" or spec.divisor is not None:
        return f"no kernel takes the eps or the divisor of {tensors.name}"
    if spec.post_factor != 1 or spec.affine_dims or not is_row_major(result):
        return f"no kernel gives the result of {tensors.name} its factor, weight or order"
    return _refusal_of_types(tensors, source, result)


def _refusal_of_types(tensors: Tensors, source: torch.Tensor, result: torch.Tensor) -> str:
    width = plain_size(source.shape[-1])
    if not isinstance(width, int) or not 0 < width <= WIDEST:
        return f"the kernels take rows of a known width up to {WIDEST}"
    if source.dtype not in DTYPES or result.dtype != source.dtype:
        return f"no kernel takes {source.dtype} and gives {result.dtype}"
    for value in (tensors.scale, tensors.shift):
        if value is not None and not (tuple(value.shape) == (width,) and value.dtype in DTYPES):
            return f"no kernel takes the weight or bias of {tensors.name}"
    return ""


def _refusal_with_sum(spec: NormSpec, tensors: Tensors, device: torch.device) -> str:
    refusal = _refusal(spec, tensors, device)
    if not refusal and tensors.addends is None:
        return f"{tensors.name} reads no sum that a kernel can add"
    return refusal


def _kind(spec: NormSpec) -> int | None:
    if spec.kind == "crms_norm":
        return CRMS if spec.basis == "drop_last" else RMS
    return {"rms_norm": RMS, "layer_norm": LAYER}.get(spec.kind)


def _write(gm: GraphModule, node: Node, region: NormRegion) -> Replaced:
    operands = region.operands(node)
    with gm.graph.inserting_before(node):
        return _put(gm, node, region, operands, operands.source, None)


def _write_with_sum(gm: GraphModule, node: Node, region: NormRegion) -> Replaced:
    operands = region.operands(node)
    pair, total = addends(operands), operands.source
    assert pair is not None
    with gm.graph.inserting_before(total.next):  # ahead of the first reader of the sum
        return _put(gm, node, region, operands, *pair)


def _put(
    gm: GraphModule, node: Node, region: NormRegion, operands: Operands, x: Node, residual: Node | None
) -> Replaced:
    from normfuse.kernels.operators import norm

    spec, source, graph = region.spec, operands.source, gm.graph
    before = set(graph.nodes)
    form = (_kind(spec), spec.eps, 0.0, spec.groups, False, True)
    made = graph.call_function(norm._opoverload, (x, operands.scale, operands.shift, residual, None, *form))
    made.meta["val"] = _results(node, source, residual is not None, spec)
    replaced = {node: part(graph, made, 0)}
    if residual is not None:
        replaced[source] = part(graph, made, 1)
    alike(graph, before, node)
    for old, new in replaced.items():
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not made)
        graph.erase_node(old)
    return replaced


def _results(node: Node, source: Node, adds: bool, spec: NormSpec) -> tuple[torch.Tensor, ...]:
    """Fake values of the four results; the last two have a number for each row and group, if any."""
    value, whole = node.meta["val"], source.meta["val"]
    rows = whole.numel() // whole.shape[-1]
    factors = whole.new_empty((rows, spec.groups), dtype=torch.float32)
    centre = factors.new_empty(0) if _kind(spec) == RMS else factors
    return value, whole if adds else whole.new_empty(0), centre, factors


KERNEL = Provider("triton", "triton", _refusal, _write)
ADD_NORM = Provider("triton with the sum", "triton", _refusal_with_sum, _write_with_sum)
