"""The canonical body of a norm: its description, written out in ATen.

    y = cast(cast(x * rsqrt(mean(x**2) + eps)) * scale + shift)

The shift is added before the last rounding. Where the description allows it the core is the
one operator ``aten.rms_norm``, which every runtime recognises. The result lies in memory as that
of the original norm did, for a reader that takes views of it.
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.emit import call, cast
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import is_row_major, shape_of, static_size, tensor_of
from normfuse.ir.spec import NormSpec

__all__ = ["canonical_region", "is_expressible"]


def is_expressible(spec: NormSpec) -> bool:
    """Whether a description has a canonical body."""
    plain = spec.kind == "rms_norm" and spec.statistics == "input" and spec.returns == "value"
    usual = spec.eps_mode == "inside" and spec.divisor is None and spec.groups == 1
    return plain and usual and spec.factor_dtype is None


def canonical_region(spec: NormSpec, operands: Operands, result: torch.Tensor) -> NormRegion:
    """A region for ``spec`` that takes operands like these and lays its result out like this one."""
    if not is_expressible(spec):
        raise InvariantError(f"no canonical body for {spec}")
    graph = Graph()
    inputs: dict[str, Node] = {}
    for role in ("source", "eps", "scale", "shift"):
        operand = getattr(operands, role)
        if operand is not None:
            inputs[role] = graph.placeholder(role)
            inputs[role].meta = {k: v for k, v in operand.meta.items() if k == "val"}
    value = _body(graph, spec, inputs, is_row_major(result))
    made = tensor_of(value)
    if made is not None and is_row_major(result) and not is_row_major(made):
        value = call(graph, aten.contiguous.default, value)
    graph.output(value)
    return NormRegion(spec, graph, "aten.rms_norm")


def _body(graph: Graph, spec: NormSpec, inputs: dict[str, Node], row_major: bool) -> Node:
    compute = spec.statistics_dtype or spec.compute_dtype
    x = cast(graph, inputs["source"], compute)
    sizes = [static_size(inputs["source"], d) for d in spec.dims]
    scale = inputs.get("scale")
    native = row_major and _is_native(spec, sizes)
    joins = native and spec.scale_dtype == compute and shape_of(scale) == tuple(sizes)
    if scale is not None and joins:
        scale = cast(graph, scale, compute)
        value = call(graph, aten.rms_norm.default, x, sizes, scale, spec.eps)
    else:
        value = _native(graph, spec, x, sizes) if native else _arithmetic(graph, spec, x, inputs.get("eps"))
        value = cast(graph, value, spec.scale_dtype)
        value = value if scale is None else call(graph, aten.mul.Tensor, value, scale)
    if "shift" in inputs:
        value = call(graph, aten.add.Tensor, value, inputs["shift"])
    value = cast(graph, value, spec.out_dtype)
    return value if spec.post_factor == 1 else call(graph, aten.mul.Tensor, value, spec.post_factor)


def _is_native(spec: NormSpec, sizes: list[int | None]) -> bool:
    """Whether ``aten.rms_norm`` can express the norm: trailing axes of fixed size, and a number for eps."""
    return spec.eps is not None and spec.dims == tuple(range(-len(spec.dims), 0)) and None not in sizes


def _native(graph: Graph, spec: NormSpec, x: Node, sizes: list[int | None]) -> Node:
    return call(graph, aten.rms_norm.default, x, sizes, None, spec.eps)


def _arithmetic(graph: Graph, spec: NormSpec, x: Node, eps: Node | None) -> Node:
    added = eps if spec.eps is None else spec.eps
    mean = call(graph, aten.mean.dim, call(graph, aten.pow.Tensor_Scalar, x, 2), list(spec.dims), True)
    rstd = call(graph, aten.rsqrt.default, call(graph, aten.add.Tensor, mean, added))
    return call(graph, aten.mul.Tensor, x, rstd)
