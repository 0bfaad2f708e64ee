"""The canonical body of a norm: its description, written out in ATen.

    y = cast(cast(x * rsqrt(mean(x**2) + eps)) * scale + shift)

The shift is added before the last rounding. Where the description allows it the core is the
one operator ``aten.rms_norm``, which every runtime recognises.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.emit import call, cast
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import shape_of, static_size
from normfuse.ir.spec import NormSpec

__all__ = ["canonical_region"]


def canonical_region(spec: NormSpec, operands: Operands) -> NormRegion:
    """A region for ``spec`` that takes operands like these."""
    if spec.kind != "rms_norm" or spec.eps_mode != "inside" or spec.statistics != "input":
        raise InvariantError(f"no canonical body for {spec.kind} with eps {spec.eps_mode}")
    graph = Graph()
    inputs: dict[str, Node] = {}
    for role in ("source", "eps", "scale", "shift"):
        operand = getattr(operands, role)
        if operand is not None:
            inputs[role] = graph.placeholder(role)
            inputs[role].meta = {k: v for k, v in operand.meta.items() if k == "val"}
    graph.output(_body(graph, spec, inputs))
    return NormRegion(spec, graph, "aten.rms_norm")


def _body(graph: Graph, spec: NormSpec, inputs: dict[str, Node]) -> Node:
    x = cast(graph, inputs["source"], spec.compute_dtype)
    sizes = [static_size(inputs["source"], d) for d in spec.dims]
    scale = inputs.get("scale")
    joins = (
        spec.scale_dtype == spec.compute_dtype and shape_of(scale) == tuple(sizes) and spec.eps is not None
    )
    if scale is not None and joins:
        scale = cast(graph, scale, spec.compute_dtype)
        value = _core(graph, spec, x, sizes, inputs, scale)
    else:
        value = cast(graph, _core(graph, spec, x, sizes, inputs, None), spec.scale_dtype)
        value = value if scale is None else call(graph, aten.mul.Tensor, value, scale)
    if "shift" in inputs:
        value = call(graph, aten.add.Tensor, value, inputs["shift"])
    return cast(graph, value, spec.out_dtype)


def _core(
    graph: Graph,
    spec: NormSpec,
    x: Node,
    sizes: list[int | None],
    inputs: dict[str, Node],
    weight: Node | None,
) -> Node:
    trailing = spec.dims == tuple(range(-len(spec.dims), 0))
    if spec.eps is not None and trailing and None not in sizes:
        return call(graph, aten.rms_norm.default, x, sizes, weight, spec.eps)
    eps = inputs["eps"] if spec.eps is None else spec.eps
    mean = call(graph, aten.mean.dim, call(graph, aten.pow.Tensor_Scalar, x, 2), list(spec.dims), True)
    rstd = call(graph, aten.rsqrt.default, call(graph, aten.add.Tensor, mean, eps))
    return call(graph, aten.mul.Tensor, x, rstd)
