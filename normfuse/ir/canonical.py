"""The canonical body of a norm: its description, written out in ATen.

    y = cast(cast(x * rsqrt(mean(x**2) + eps)) * scale + shift)

A LayerNorm subtracts its mean from ``x`` first. The mean of squares is over what is stored or, in the basis
"drop_last", over that and the coordinate ``-sum(x)``. The shift is added before the last rounding. Where the
description allows it the core is the one operator ``aten.rms_norm`` or ``aten.layer_norm``, which every
runtime recognises. The result lies in memory as that of the original norm did, for a reader that takes views
of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.fx import Graph, Node

from normfuse.errors import InvariantError
from normfuse.ir.calls import aten
from normfuse.ir.dtypes import opmath
from normfuse.ir.emit import as_row_major, call, cast
from normfuse.ir.region import NormRegion, Operands
from normfuse.ir.sizes import is_row_major, shape_of, static_size
from normfuse.ir.spec import NormSpec

__all__ = [
    "canonical_region",
    "has_body",
    "is_core_of_groups",
    "is_expressible",
    "is_plain",
    "respell",
    "scaled",
    "shifted",
]


def has_body(spec: NormSpec) -> bool:
    """Whether a description has a canonical body; the eps of all but plain norms is a number."""
    if is_expressible(spec):
        return True
    usual = spec.statistics == "input" and spec.returns == "value" and spec.factor_dtype is None
    if spec.eps is None or spec.basis or not usual:
        return False
    if spec.kind == "group_norm":
        return spec.eps_mode == "inside"
    if spec.groups > 1:
        return is_core_of_groups(spec)
    return spec.kind in ("layer_norm", "rms_norm", "l2_norm")


def is_core_of_groups(spec: NormSpec) -> bool:
    """Whether groups of the last axis are normalized each by itself, as a plain norm does, and no more."""
    bare = not (spec.has_scale or spec.has_shift) and spec.post_factor == 1
    return bare and spec.groups > 1 and spec.dims == (-1,) and is_expressible(replace(spec, groups=1))


def is_expressible(spec: NormSpec) -> bool:
    """Whether a description is that of a plain norm: of all its elements, with eps inside the root."""
    plain = _is_known(spec) and spec.statistics == "input" and spec.returns == "value"
    usual = spec.eps_mode == "inside" and spec.groups == 1 and spec.factor_dtype is None
    return plain and usual and (spec.divisor is None or spec.basis == "drop_last")


def is_plain(spec: NormSpec) -> bool:
    """Whether a LayerNorm or RMSNorm divides by the root of a mean square and a number, whatever follows."""
    bare = spec.kind in ("layer_norm", "rms_norm") and is_expressible(spec.core)
    return bare and spec.eps is not None


def _is_known(spec: NormSpec) -> bool:
    """A LayerNorm, an RMSNorm, or one in coordinates of the zero-mean space, which are along one axis."""
    if spec.kind != "crms_norm":
        return spec.kind in ("layer_norm", "rms_norm") and not spec.basis
    return spec.basis in ("drop_last", "orthonormal") and len(spec.dims) == 1


def canonical_region(spec: NormSpec, operands: Operands, result: torch.Tensor) -> NormRegion:
    """A region for ``spec`` that takes operands like these and lays its result out like this one."""
    if not has_body(spec):
        raise InvariantError(f"no canonical body for {spec}")
    graph = Graph()
    inputs: dict[str, Node] = {}
    for role in ("source", "eps", "scale", "shift"):
        operand = getattr(operands, role)
        if operand is not None:
            inputs[role] = graph.placeholder(role)
            inputs[role].meta = {k: v for k, v in operand.meta.items() if k == "val"}
    value = _body(graph, spec, inputs, is_row_major(result))
    graph.output(as_row_major(graph, value, result))
    return NormRegion(spec, graph, _spelling(spec))


def respell(norm: Node, spec: NormSpec, operands: Operands) -> None:
    """Make the norm that a node calls another one."""
    gm = norm.graph.owning_module
    assert gm is not None
    gm.add_submodule(str(norm.target), canonical_region(spec, operands, norm.meta["val"]))
    norm.args = replace(operands, sizes=()).as_args()


def _spelling(spec: NormSpec) -> str:
    if spec.basis == "drop_last" or not is_expressible(spec):
        return spec.kind
    return "aten.layer_norm" if spec.centred else "aten.rms_norm"


def _body(graph: Graph, spec: NormSpec, inputs: dict[str, Node], row_major: bool) -> Node:
    compute = opmath(spec.sum_dtype) if spec.basis == "drop_last" else spec.sum_dtype
    if spec.kind == "group_norm":
        held = (inputs.get("scale"), inputs.get("shift"))
        value = call(graph, aten.group_norm.default, inputs["source"], spec.groups, *held, spec.eps)
        return _times(graph, value, spec.post_factor)
    if spec.groups > 1:
        parts = call(graph, aten.unflatten.int, inputs["source"], -1, [spec.groups, -1])
        value = _body(graph, replace(spec, groups=1), {**inputs, "source": parts}, row_major)
        return call(graph, aten.flatten.using_ints, value, -2, -1)
    sizes = [static_size(inputs["source"], d) for d in spec.dims]
    scale = inputs.get("scale")
    native = row_major and _is_native(spec, sizes)
    if native and _is_whole(spec, inputs, sizes):
        return _times(graph, _whole(graph, spec, inputs, sizes), spec.post_factor)
    x = cast(graph, inputs["source"], compute)
    joins = native and not spec.centred and spec.scale_dtype == compute and shape_of(scale) == tuple(sizes)
    if scale is not None and joins:
        scale = cast(graph, scale, compute)
        value = call(graph, aten.rms_norm.default, x, sizes, scale, spec.eps)
    else:
        value = _native(graph, spec, x, sizes) if native else _arithmetic(graph, spec, x, inputs.get("eps"))
        value = scaled(graph, spec, value, scale)
    return shifted(graph, spec, value, inputs.get("shift"))


def scaled(graph: Graph, spec: NormSpec, value: Node, scale: Node | None) -> Node:
    """What follows the core of a norm, up to its weight."""
    value = cast(graph, value, spec.scale_dtype)
    return value if scale is None else call(graph, aten.mul.Tensor, value, scale)


def shifted(graph: Graph, spec: NormSpec, value: Node, shift: Node | None) -> Node:
    """What follows the weight of a norm."""
    if shift is not None:
        value = call(graph, aten.add.Tensor, value, shift)
    value = cast(graph, value, spec.out_dtype)
    return _times(graph, value, spec.post_factor)


def _times(graph: Graph, value: Node, number: float) -> Node:
    return value if number == 1 else call(graph, aten.mul.Tensor, value, number)


def _is_native(spec: NormSpec, sizes: list[int | None]) -> bool:
    """Whether one operator can express the norm: trailing axes of fixed size, and a number for eps."""
    if spec.basis == "drop_last" or spec.eps is None or not is_expressible(spec):
        return False
    return spec.dims == tuple(range(-len(spec.dims), 0)) and None not in sizes


def _is_whole(spec: NormSpec, inputs: dict[str, Node], sizes: list[int | None]) -> bool:
    """Whether that operator is the norm with weight and bias, casts included: it rounds once, in the end."""
    held = [inputs[role] for role in ("scale", "shift") if role in inputs]
    alike = all(shape_of(n) == tuple(sizes) and n.meta["val"].dtype == spec.source_dtype for n in held)
    precise = spec.compute_dtype == opmath(spec.source_dtype) == spec.sum_dtype
    rounded = spec.source_dtype == spec.out_dtype
    rounds_once = spec.scale_dtype == spec.compute_dtype or (not held and spec.scale_dtype == spec.out_dtype)
    return alike and precise and rounded and rounds_once and (spec.centred or not spec.has_shift)


def _whole(graph: Graph, spec: NormSpec, inputs: dict[str, Node], sizes: list[int | None]) -> Node:
    x, scale, shift = inputs["source"], inputs.get("scale"), inputs.get("shift")
    if spec.centred:
        return call(graph, aten.layer_norm.default, x, sizes, scale, shift, spec.eps)
    return call(graph, aten.rms_norm.default, x, sizes, scale, spec.eps)


def _native(graph: Graph, spec: NormSpec, x: Node, sizes: list[int | None]) -> Node:
    if spec.centred:
        return call(graph, aten.layer_norm.default, x, sizes, None, None, spec.eps)
    return call(graph, aten.rms_norm.default, x, sizes, None, spec.eps)


def _arithmetic(graph: Graph, spec: NormSpec, x: Node, eps: Node | None) -> Node:
    added = eps if spec.eps is None else spec.eps
    if spec.centred:
        x = call(graph, aten.sub.Tensor, x, call(graph, aten.mean.dim, x, list(spec.dims), True))
    if not is_expressible(spec):
        return call(graph, aten.div.Tensor, x, _bounded_root(graph, spec, x))
    mean = _mean_square(graph, spec, x)
    rstd = call(graph, aten.rsqrt.default, call(graph, aten.add.Tensor, mean, added))
    return call(graph, aten.mul.Tensor, x, rstd)


def _bounded_root(graph: Graph, spec: NormSpec, x: Node) -> Node:
    """The root of the mean square with its eps; its derivative at zero is that of a length, which is zero."""
    length = call(graph, aten.linalg_vector_norm.default, x, 2, list(spec.dims), True)
    elements = math.prod(_stored_size(x, d) for d in spec.dims)
    divisor = elements if spec.divisor is None else spec.divisor
    root = length if divisor == 1 else call(graph, aten.div.Tensor, length, math.sqrt(divisor))
    if spec.eps_mode == "clamp":
        return call(graph, aten.clamp_min.default, root, spec.eps)
    if spec.eps_mode == "outside":
        return call(graph, aten.add.Tensor, root, spec.eps)
    square = call(graph, aten.add.Tensor, call(graph, aten.pow.Tensor_Scalar, root, 2), spec.eps)
    return call(graph, aten.sqrt.default, square)


def _mean_square(graph: Graph, spec: NormSpec, x: Node) -> Node:
    squares, dims = call(graph, aten.pow.Tensor_Scalar, x, 2), list(spec.dims)
    if spec.basis != "drop_last":
        return call(graph, aten.mean.dim, squares, dims, True)
    stored = call(graph, aten.sum.dim_IntList, squares, dims, True)
    dropped = call(graph, aten.pow.Tensor_Scalar, call(graph, aten.sum.dim_IntList, x, dims, True), 2)
    whole = call(graph, aten.add.Tensor, stored, dropped)
    return call(graph, aten.div.Tensor, whole, spec.divisor or _stored_size(x, spec.dims[0]) + 1)


def _stored_size(x: Node, axis: int) -> int:
    size = static_size(x, axis)
    if size is None:
        raise InvariantError(f"the size of axis {axis} of {x.name} is only known when the graph runs")
    return size
