"""Norms that PyTorch spells with one operator.

    layer_norm: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias      (Ba et al. 2016, eq. 4)
    rms_norm:   y = x / sqrt(mean(x**2) + eps) * weight                     (Zhang, Sennrich 2019, eq. 4)

Both compute in float32 for half-precision inputs and round once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

from normfuse.ir.calls import aten, bind
from normfuse.ir.dtypes import opmath
from normfuse.ir.region import Operands
from normfuse.ir.sizes import tensor_of
from normfuse.ir.spec import NormSpec
from normfuse.patterns.affine import weight_offset
from normfuse.patterns.candidate import Candidate
from normfuse.patterns.facts import Facts, Stage

__all__ = ["native_norms"]


def native_norms(graph: Graph, facts: Facts) -> list[Candidate]:
    """Every native norm of a graph, in execution order."""
    found = (_READERS[n.target](n, facts) for n in graph.nodes if n.target in _READERS)
    return [c for c in found if c is not None]


def _layer_norm(node: Node, facts: Facts) -> Candidate | None:
    bound = bind(node)
    return _native("layer_norm", node, bound, facts, bound["eps"])


def _rms_norm(node: Node, facts: Facts) -> Candidate | None:
    bound = bind(node)
    value = tensor_of(bound["input"])
    default = torch.finfo(opmath(value.dtype)).eps if value is not None and value.is_floating_point() else 0.0
    return _native("rms_norm", node, bound, facts, default if bound["eps"] is None else bound["eps"])


def _native(kind: str, node: Node, bound: dict[str, Any], facts: Facts, eps: Any) -> Candidate | None:
    fact = facts.at(bound["input"], Stage.SOURCE)
    value = tensor_of(bound["input"])
    result = tensor_of(node)
    if fact is None or fact.centred or value is None or not value.is_floating_point():
        return None
    if result is None or result.dtype != value.dtype:
        return None  # autocast chose the types
    compute, weight = opmath(value.dtype), bound["weight"]
    source = tensor_of(fact.source)
    assert source is not None
    spec = NormSpec(
        kind=kind,
        dims=tuple(range(-len(bound["normalized_shape"]), 0)),
        eps=None if isinstance(eps, Node) else float(eps),
        source_dtype=source.dtype,
        compute_dtype=compute,
        scale_dtype=value.dtype if weight is None else compute,
        out_dtype=value.dtype,
        has_scale=weight is not None,
        has_shift=bound.get("bias") is not None,
        weight_offset=weight_offset(weight),
    )
    operands = Operands(fact.source, eps if isinstance(eps, Node) else None, weight, bound.get("bias"))
    return Candidate(spec, node, operands)


_READERS: dict[OpOverload, Callable[[Node, Facts], Candidate | None]] = {
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
}
